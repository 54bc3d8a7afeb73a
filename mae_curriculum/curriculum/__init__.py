"""What the encoder sees at every step: `config` holds the settings, `clock` applies them to a run (both pure Python,
without torch), `low_frequency` shrinks images. How steps are made is in `training`.
"""
