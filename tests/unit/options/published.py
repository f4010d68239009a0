"""Published scores that headers of config/ quote: (folder, file) -> numbers, transcribed from the papers."""

STREAMS = ("topic3datasets_task5", "clinc150_task15", "banking77_task7", "fewrel_task8", "tacred_task8")
# "Learn or Recall?" (ACL 2024), table 7, Pythia-410m: after the last task and averaged over the tasks, by stream.
TABLE_7 = {
    "L2KD": "58.89/72.82 22.48/51.23 47.47/75.11 37.08/57.29 20.86/41.15",
    "LAMOL_KD": "49.94/70.61 41.99/68.08 52.60/73.44 25.77/49.46 29.03/48.38",
    "LAMOL_g": "74.45/84.36 35.43/60.67 48.40/73.93 28.10/50.81 32.70/49.90",
    "LAMOL_t": "74.05/84.84 43.37/67.77 57.00/78.13 28.44/51.19 28.81/48.41",
    "PCLL": "58.83/74.18 47.09/71.72 45.33/72.25 31.00/51.93 24.50/51.59",
    "SEQ_Lin": "19.66/45.55 12.26/28.33 14.88/34.17 13.43/35.78 12.64/32.06",
    "SEQ_Cos": "16.89/41.68 5.97/18.27 11.10/15.62 11.40/17.76 10.08/16.75",
    "SEQ_FixB_Cos": "17.13/42.38 6.08/18.31 10.32/12.72 7.45/19.59 9.30/15.73",
    "SEQ_FixC_Cos": "50.96/55.69 64.28/56.54 44.93/36.40 33.48/34.74 28.90/26.61",
    "SEQ_FixBC_Cos": "53.18/57.35 62.72/56.43 44.09/33.96 33.58/33.54 28.02/26.50",
    "SEQ_W_FixBC_Lin": "33.41/54.47 19.06/33.90 17.79/40.93 13.68/36.14 13.65/33.78",
    "SEQ_P_W_FixBC_Lin": "33.70/52.33 27.20/37.50 15.09/36.70 17.08/37.00 14.54/34.12",
    "SEQ_W_FixBC_Cos": "50.77/61.69 75.96/74.29 53.76/50.02 46.12/50.36 36.55/33.51",
    "SEQ_P_W_FixBC_Cos": "70.56/83.69 84.51/89.43 67.12/75.54 61.99/73.97 44.34/48.52",
}
FILE_NAMES = {"SEQ_Lin": "SEQ", "SEQ_P_W_FixBC_Cos": "SEQ_star"}  # in the folders of the streams
GENERATIVE = ("L2KD", "LAMOL_KD", "LAMOL_g", "LAMOL_t", "PCLL")  # two streams have files of these
# "Concept-1K" (arXiv 2402.08526), table 7, Pythia-410M: accuracy and forgetting, training questions and the others.
CONCEPT_1K = {
    "SEQ": (58.28, 17.68, 65.19, 15.39),
    "EWC": (59.83, 18.09, 62.46, 15.07),
    "LAMOL_g": (58.76, 15.35, 64.64, 13.61),
    "LAMOL_t": (58.29, 15.24, 66.66, 14.05),
    "L2KD": (28.34, 10.87, 32.45, 8.55),
    "PCLL": (61.94, 20.06, 63.04, 16.27),
    "LAMOL_KD": (72.33, 18.20, 49.25, 10.61),
    "Replay": (77.31, 22.48, 46.97, 10.57, 99.01, 25.70),  # memory of 2,000; accuracy with a memory of everything
}


def _table_7() -> dict[tuple[str, str], tuple[float, ...]]:
    cells = {}
    for name, row in TABLE_7.items():
        for stream, cell in zip(STREAMS, row.split(), strict=True):
            scores = tuple(map(float, cell.split("/")))
            if name in FILE_NAMES or (name in GENERATIVE and stream in STREAMS[:2]):
                cells[stream, FILE_NAMES.get(name, name)] = scores
            if stream == "clinc150_task15" and name not in GENERATIVE:
                cells["learn_or_recall", name] = scores
    return cells


PUBLISHED: dict[tuple[str, str], tuple[float, ...]] = {
    **_table_7(),
    **{("concept_1k_task10", name): scores for name, scores in CONCEPT_1K.items()},
    # "Learn or Recall?", table 13, bert-base-cased: macro F1 after the last task and averaged over the tasks.
    ("fewnerd_task11_base6_inc6", "SEQ"): (2.97, 16.21),
    ("fewnerd_task11_base6_inc6", "SEQ_star"): (28.21, 43.06),
    ("ontonotes5_task6_base8_inc2", "SEQ"): (4.38, 21.20),
    ("ontonotes5_task6_base8_inc2", "SEQ_star"): (67.39, 72.27),
    ("i2b2_task5_base8_inc2", "SEQ"): (5.26, 25.26),
    ("i2b2_task5_base8_inc2", "SEQ_star"): (72.51, 75.48),
    # "Spurious Forgetting" (ICLR 2025), as quoted in summaries: task 0, the early stop, the memory; jailbreaks.
    ("biography_qa_task2", "SEQ"): (100, 11.18),
    ("biography_qa_task2", "Freeze"): (44.22, 99),
    ("biography_qa_task2", "LAMOL"): (22,),
    ("biography_qa_task2", "Replay"): (50,),
    ("safety_alignment_llama2_task2", "SEQ"): (100, 1),
    ("safety_alignment_llama2_task2", "Freeze"): (1.15, 99.80),
    # TRACE (arXiv 2310.06762), table 1, Llama-2-7B-chat: score and backward transfer.
    ("TRACE_task8", "SEQ"): (48.7, 8.3),
    ("TRACE_task8", "Replay"): (55.5, 2.6),
    ("TRACE_task8", "TreeLoRA"): (43.52, 3.46),
    # O-LoRA's table (as quoted by others); SLAO (arXiv 2512.23017), Llama-2-7B-chat, with backward transfer; SAPT's
    # table (from memory) with forgetting.
    ("superni_task15", "SeqLoRA"): (6.4, 30.9),
    ("superni_task15", "Replay"): (35.4, 15.8),
    ("superni_task15", "OLoRA"): (25.9, 26.4),
    ("long_sequence_task15", "SEQ"): (7.4,),
    ("long_sequence_task15", "SeqLoRA"): (1.6, 68.7, 17.2, 9.7, 78.6),
    ("long_sequence_task15", "IncLoRA"): (61.2, 72.5, 9.6),
    ("long_sequence_task15", "Replay"): (54.2, 71.3, 15.1),
    ("long_sequence_task15", "EWC"): (45.1,),
    ("long_sequence_task15", "LwF"): (46.9,),
    ("long_sequence_task15", "OLoRA"): (69.6, 73.5, 4.0, 69.2, 7.0),
    ("long_sequence_task15", "InfLoRA"): (69.8, 4.9),
    ("long_sequence_task15", "SLAO"): (74.8, 3.5),
    ("long_sequence_task15", "Joint"): (78.1,),
    ("standard_cl_task4", "SEQ"): (28.5,),
    ("standard_cl_task4", "SeqLoRA"): (43.7,),
    ("standard_cl_task4", "IncLoRA"): (66.4,),
    ("standard_cl_task4", "Replay"): (57.8,),
    ("standard_cl_task4", "EWC"): (48.7,),
    ("standard_cl_task4", "LwF"): (52.3,),
    ("standard_cl_task4", "OLoRA"): (75.8,),
    ("standard_cl_task4", "Joint"): (80.0,),
}
