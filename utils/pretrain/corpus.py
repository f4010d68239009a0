"""Text for pretraining: biographies or the texts of a stream, a new vocabulary, and chunks of equal length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.dataloader import IGNORE
from utils.dataset import load_stream
from utils.errors import UserError
from utils.preprocess import biography_synth
from utils.preprocess.shared.raw import DATASET_DIR
from utils.seed import random_for
from utils.storage.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast  # seconds to import: not for --help

EOS, PAD = "<|endoftext|>", "<|padding|>"


class Chunks:
    """Texts in a new random order each epoch, joined with EOS after each and cut into chunks, step by step."""

    def __init__(self, rows: list[list[int]], eos: int, seed: int, context: int, batch: int):
        """Prepare the texts.

        Args:
            rows: Token ids of each text.
            eos: Id of the token after each.
            seed: Seed of the order; seed and number of a step determine its data.
            context: Tokens of a chunk, T.
            batch: Chunks of an optimizer step over all processes, B.

        Raises:
            UserError: there is too little text for one step.
        """
        self.rows, self.eos, self.seed = [np.array([*ids, eos], np.int32) for ids in rows], eos, seed
        self.context, self.size = context, context * batch
        self.tokens = sum(map(len, self.rows))  # of an epoch
        self.steps = self.tokens // self.size  # of an epoch; the tail is left out
        if self.steps == 0:
            raise UserError(
                f"--batch {batch}: a step takes {self.size} tokens, but all text has {self.tokens}; lower it"
            )
        self.epoch, self.stream = -1, np.empty(0, np.int32)

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Token ids (B, T - 1) of a step and, as labels, the tokens that follow them.

        The token after an EOS is not a label, because it cannot be predicted.
        """
        epoch, place = divmod(number, self.steps)
        if epoch != self.epoch:
            order = list(range(len(self.rows)))
            random_for(self.seed, "pretrain", epoch).shuffle(order)
            self.epoch, self.stream = epoch, np.concatenate([self.rows[i] for i in order])
        part = self.stream[place * self.size : (place + 1) * self.size].reshape(-1, self.context)
        ids = torch.from_numpy(part.astype(np.int64))
        return ids[:, :-1], ids[:, 1:].masked_fill(ids[:, :-1] == self.eos, IGNORE)


def read_texts(preset: str, seed: int, count: int = 0, raw_dir: Path | None = None) -> tuple[list[str], list[str]]:
    """Biographies of the first persons, and the questions about them.

    Args:
        preset: Size of lists and counts, as for biography_synth.
        seed: Seed of the invented persons.
        count: Number of persons; 0: those of task 0.
        raw_dir: Folder with biography_qa/biography/, to read instead of inventing persons; it has no questions.

    Raises:
        UserError: the file is missing, has another format or fewer persons.
    """
    size = biography_synth.PRESETS[preset]
    count = count or size.first
    if raw_dir is not None:
        return _from_file(raw_dir / f"biography_qa/biography/multi{size.n_bio}_permute_fullname.json", count), []
    lists = biography_synth.read_lists(size)
    persons = biography_synth.make_persons(lists, count, seed)
    groups = biography_synth.biographies(persons, lists, biography_synth.Options(preset=preset), seed)
    questions = [prompt for person in persons for prompt, _ in biography_synth.ask(person, lists)]
    return [text for group in groups for text in group], questions


def read_stream(name: str) -> tuple[list[str], list[str]]:
    """Training texts of all tasks of a stream in dataset/, and their answers, which are used only for the vocabulary.

    Raises:
        UserError: there is no such stream.
    """
    rows = [example for task in load_stream(name, DATASET_DIR).tasks for example in task.train]
    return [row.input for row in rows], [row.target for row in rows]


def _from_file(path: Path, count: int) -> list[str]:
    raw = read_json(path)
    try:
        kept = {key: row["biography"] for key, row in raw.items() if int(key.split("_")[0]) < count}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f'{path}: expected {{"<person>_<number>": {{"biography": text}}, ...}}') from None
    if len({key.split("_")[0] for key in kept}) < count:
        raise UserError(f"{path}: expected persons 0-{count - 1}, some are missing; give fewer with --persons")
    return list(kept.values())


def make_tokenizer(texts: list[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on these texts, so that names and values are one token or a few."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, padding_side="left", clean_up_tokenization_spaces=False
    )
