def match_atss(*a): raise NotImplementedError
