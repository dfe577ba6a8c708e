def match_task_aligned(*a): raise NotImplementedError
