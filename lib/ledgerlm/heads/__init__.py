"""What stands on top of the vectors: training, calibration and scoring."""
