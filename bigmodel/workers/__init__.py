"""Workers: processes that train the runs of a study, on this machine or on a cluster."""
