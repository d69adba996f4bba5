"""What a bank of some size will cost before it is run: tokens, FLOPs, hours, bytes and money of each stage."""
