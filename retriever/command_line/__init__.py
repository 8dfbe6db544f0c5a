"""What the command line consists of: the verbs in groups, the options they share, and how results are shown."""
