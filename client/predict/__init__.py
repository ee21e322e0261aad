"""A trained model on a folder of images: what it says, and where in the image it looks."""
