"""What files of transactions say by themselves: a data set spec, drafted, each guess with its reason."""
