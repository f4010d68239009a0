"""The table of methods. Adding one is: a file here, a line below, a YAML in config/."""

METHODS = {  # name in YAML == file == class == prefix of its options
    "SEQ": "models.SEQ",
    "Joint": "models.Joint",
    "ProgPrompt": "models.ProgPrompt",
}
