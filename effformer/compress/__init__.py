"""Making a trained model small: pure functions over config and parameters."""
