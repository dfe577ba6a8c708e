"""From what there is, archives or files of other formats, to a data set that training reads."""
