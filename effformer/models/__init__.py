"""Networks: layers, encoder, classification head. A model is data (config)."""
