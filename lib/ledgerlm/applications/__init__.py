"""What a bank does with scores: recommendations, campaign lists, cross-sell, stock; each tried on what came."""
