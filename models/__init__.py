"""The table of methods. Adding one is: a file here, a line below, a YAML in config/."""

METHODS = {  # name in YAML == file == class == prefix of its options
    "SEQ": "models.SEQ",
    "Joint": "models.Joint",
    "LAMOL": "models.LAMOL",
    "LAMOL_KD": "models.LAMOL_KD",
    "L2KD": "models.L2KD",
    "PCLL": "models.PCLL",
    "LFPT5": "models.LFPT5",
    "ProgPrompt": "models.ProgPrompt",
}
