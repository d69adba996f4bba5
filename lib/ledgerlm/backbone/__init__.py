"""The language model: loading, windows, packs, attention, training, embedding."""
