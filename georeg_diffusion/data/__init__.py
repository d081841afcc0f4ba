"""Images to train on: sets, folders, and the order in which a run draws them."""
