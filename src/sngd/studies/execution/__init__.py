"""Do many runs, in processes on this machine or on a cluster, and follow their progress."""
