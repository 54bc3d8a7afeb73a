"""What the encoder sees at every step: `schedule` decides image size and augmentation strength (pure Python, without
torch), `low_frequency` shrinks images. How steps are made is in `training`.
"""
