"""From image files to batches on the device: sources, decoding, augmentation, the loader with its order,
preprocessing.
"""
