"""Where a run of the toy world keeps what, and the commands of tokenmill that make it, one method a step.

Three models come from one recipe: `mixed`, `shuffled` (captions and answers of other samples, the same pictures, so
codes are taken over; clips that go on as others do) and `untrained` (one step at a learning rate of 1e-12). The
trade-off: commands run in this process, which saves five seconds of imports each and keeps their memory until the end.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.toyworld.sizes import Size
from tokenmill.errors import RunError
from tokenmill.manifests.identity import digest_of

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).parent / "recipes" / "toyworld.yaml"
TOKENIZER_RECIPE = Path(__file__).parent / "recipes" / "tokenizer.yaml"
TOKENIZER_SEEDS = 500_000_000  # from here on: samples that only the vision tokenizer is trained on
_UNSEEN_EVERY = 5
TOKENIZER_RUN = "toy"
NUM_CODES = 512
_SHUFFLED = (
    "{columns: {words: {engine: metadata, fields: [shuffled_captions]}, "
    "pairs: {engine: metadata, fields: [shuffled_questions], form: questions}}}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """One run: its folder, its size, and what is laid over the recipe."""

    out: Path
    size: Size
    overrides: tuple[str, ...] = ()
    recipe: Path = RECIPE

    @property
    def root(self) -> Path:
        """The root of the recipe."""
        return self.out / "run"

    @property
    def results(self) -> Path:
        """What the judges found."""
        return self.out / "results.json"

    @property
    def words(self) -> Path:
        """The text tokenizer."""
        return self.out / "words.json"

    @property
    def vision(self) -> Path:
        """The vision tokenizer."""
        return self.root / "checkpoints" / "tokenizers" / TOKENIZER_RUN / "export"

    def export(self, model: str) -> Path:
        """Return the folder of a trained model."""
        return self.root / "checkpoints" / (model if model == "untrained" else f"{model}-clips") / "export"

    def write_data(self) -> None:
        """Write pictures and clips as raw data: for the models, and half as many for the vision tokenizer alone.

        The latter have all combinations, as a tokenizer has seen more of the world than any one model's training data.
        """
        from benchmarks.toyworld.writing import write_clips, write_pictures

        data, pairs = self.out / "data", self.size.pairs
        write_pictures(data / "pictures", range(self.size.pictures), pairs=pairs)
        write_clips(data / "clips", range(self.size.clips), pairs=pairs)
        looks, moving = (
            range(TOKENIZER_SEEDS, TOKENIZER_SEEDS + count // 2) for count in (self.size.pictures, self.size.clips)
        )
        write_pictures(data / "looks", looks, pairs=pairs, unseen_every=_UNSEEN_EVERY)
        write_clips(data / "moving", moving, pairs=pairs, unseen_every=_UNSEEN_EVERY)

    def train_words(self) -> None:
        """Train the text tokenizer."""
        from benchmarks.toyworld.words import train_words

        train_words(self.words, self.out / "data" / "pictures", self.out / "data" / "clips")

    def train_tokenizer(self) -> None:
        """Score, select, and train the vision tokenizer on what was kept."""
        from benchmarks.toyworld.first_codes import write_first_tokenizer

        write_first_tokenizer(ROOT / "tokenize" / "weights" / "scenes", self.out / "first", NUM_CODES)
        self.command("run", "--until", "select", recipe=TOKENIZER_RECIPE)
        self.command("train-tokenizer", recipe=TOKENIZER_RECIPE)

    def run(self, model: str) -> None:
        """Caption, tokenize, plan and train; the control's clips are written first."""
        from benchmarks.toyworld.writing import write_clips

        if model == "shuffled":
            clips = range(self.size.clips)
            write_clips(self.out / "data" / "spliced", clips, pairs=self.size.pairs, spliced=True)
        self.train(model, *self.differences(model))

    def train(self, model: str, *changes: str) -> None:
        """Run the stages up to a trained model; raises RunError where training was stopped, which ends with 0."""
        self.command("run", "--until", "train", *changes)
        if not (self.export(model) / "tokenmill.json").exists():
            raise RunError(f"training of {model} was stopped, and saved; run this again to resume")

    def differences(self, model: str) -> list[str]:
        """Return how a model's recipe differs from the one of `mixed`."""
        if model == "shuffled":
            words = [f"caption.image={_SHUFFLED}", f"caption.video={_SHUFFLED}"]
            return [*words, f"sources.clips.url={self.out}/data/spliced", "train.run=shuffled"]
        if model == "untrained":
            return ["train.run=untrained", "train.phases={}", "train.phase=clips", "train.steps=1", "train.lr=1e-12"]
        return [f"train.run={model}"]

    def command(self, name: str, *arguments: str, recipe: Path | None = None) -> None:
        """Run a command of tokenmill on a recipe, the models' unless told; raises RunError where it fails."""
        from tokenmill.cli import main

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        flags = [one for one in arguments if "=" not in one]
        changes = [one for one in arguments if "=" in one]
        of_tokenizer = recipe == TOKENIZER_RECIPE
        said = [one for one in self.overrides if one.startswith("tokenizer.") == of_tokenizer]
        places = self.tokenizer_places() if of_tokenizer else self.places()
        code = main([name, str(recipe or self.recipe), *flags, *places, *said, *changes])
        if code:
            raise RunError(f"tokenmill {name} ended with {code}; what it said stands above; run this again to resume")

    def places(self) -> list[str]:
        """Return where everything lies, as overrides of the recipe."""
        return [
            f"root={self.root}",
            f"sources.pictures.url={self.out}/data/pictures",
            f"sources.clips.url={self.out}/data/clips",
            f"tokenize.vocabulary.path={self.words}",
            f"tokenize.vision.name={self.vision}",
            f"tokenize.vocabulary.codebook_size={NUM_CODES}",
        ]

    def tokenizer_places(self) -> list[str]:
        """Return where everything lies that the vision tokenizer is made of."""
        return [
            f"root={self.root}",
            f"sources.looks.url={self.out}/data/looks",
            f"sources.moving.url={self.out}/data/moving",
            f"tokenizer.start={{from: {self.out}/first}}",
        ]

    def choose_sampler(self) -> None:
        """Choose guidance, top-k and temperature by prompts that are not reported."""
        from benchmarks.toyworld.exhibits import choose_sampler

        put_json(self.out / "sampler.json", choose_sampler(self.export("mixed"), self.size))

    def sampler(self, model: str) -> Path:
        """Return how a model's sampler is set: its own setting, or the one that all models share."""
        own = self.out / f"sampler-{model}.json"
        return own if own.exists() else self.out / "sampler.json"

    def drawn(self, model: str) -> Path:
        """Return the folder of what a model made: another one where model, sampler or what is asked differ."""
        described = (self.export(model) / "tokenmill.json").read_text()
        asked = [described, self.sampler(model).read_text(), repr(self.size)]
        return self.out / "drawn" / f"{model}-{digest_of(asked)[:8]}"

    def draw(self, model: str) -> None:
        """Let a model draw, answer, and go on with clips; ids are kept."""
        from benchmarks.toyworld.exhibits import exhibit

        exhibit(
            self.export(model),
            self.drawn(model),
            self.size,
            json.loads(self.sampler(model).read_text()),
        )

    def judge(self) -> None:
        """Judge what all models made, and the tokenizer's ceiling."""
        from benchmarks.toyworld.results import judged

        drawn = {model: self.drawn(model) for model in ("mixed", "shuffled", "untrained")}
        found = judged(drawn, self.export("mixed"), self.size)
        found["sampler"] = json.loads((self.out / "sampler.json").read_text())
        put_json(self.results, found)

    def show(self, document: Path) -> None:
        """Write the tables into a document, and a picture of what was drawn beside it."""
        from benchmarks.toyworld.shown import write_shown
        from benchmarks.toyworld.table import write_table

        write_table(self.results, document)
        write_shown(self.export("mixed"), self.drawn("mixed"), self.size, document.with_suffix(".png"))


def recipe_texts(toy: Toy) -> list[str]:
    """Return all that recipes say, for the identity of a step."""
    return [toy.recipe.read_text(), TOKENIZER_RECIPE.read_text(), *toy.overrides]


def put_json(path: Path, value: object) -> None:
    """Publish a JSON file whole."""
    staged = path.with_name(f"{path.name}.writing")
    staged.write_text(json.dumps(value, indent=1))
    staged.replace(path)
