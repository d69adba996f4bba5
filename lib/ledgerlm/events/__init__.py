"""Events: what a data set is, and how its files become events, clients and labels."""
