"""The table of methods. Adding one is: a file here, a line below, a YAML in config/."""

METHODS = {  # name in YAML == file == class == prefix of its options
    "SEQ": "models.SEQ",
    "Joint": "models.Joint",
    "Single": "models.Single",
    "EWC": "models.EWC",
    "LwF": "models.LwF",
    "DERpp": "models.DERpp",
    "CLSER": "models.CLSER",
    "AGEM": "models.AGEM",
    "GEM": "models.GEM",
    "GradientProjection": "models.GradientProjection",
    "LAMOL": "models.LAMOL",
    "LAMOL_KD": "models.LAMOL_KD",
    "L2KD": "models.L2KD",
    "TaskVector": "models.TaskVector",
    "ICL": "models.ICL",
    "PEFT": "models.PEFT",
    "AdapterCL": "models.AdapterCL",
    "OLoRA": "models.OLoRA",
    "InfLoRA": "models.InfLoRA",
    "SLAO": "models.SLAO",
}
