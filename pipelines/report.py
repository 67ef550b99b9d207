"""Stage report: one self-contained HTML file that shows what a run did, from the funnel to the pictures it drew.

Made from manifests and tables alone, plus the few originals it shows; it computes nothing that a stage should have
written. It works for whatever is complete and says plainly what is not there yet. No script, no outside resource, 4 MB.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.report_captions import captions_section
from tokenmill.pipelines.report_data import Run
from tokenmill.pipelines.report_evaluation import evaluation_section
from tokenmill.pipelines.report_funnel import funnel_section, losses_section
from tokenmill.pipelines.report_generated import generated_section
from tokenmill.pipelines.report_html import Markup, element, join, note
from tokenmill.pipelines.report_jobs import jobs_shown
from tokenmill.pipelines.report_learned import headline, read_learned
from tokenmill.pipelines.report_pictures import Album, Originals
from tokenmill.pipelines.report_run import counted, digests_section, header, timings_section
from tokenmill.pipelines.report_scores import scores_section
from tokenmill.pipelines.report_sheets import sheets_section
from tokenmill.pipelines.report_tokens import tokens_section
from tokenmill.pipelines.report_training import training_section
from tokenmill.recipe import Recipe

_NAVIGATION = ("funnel", "losses", "scores", "samples", "captions", "tokens", "training", "evaluation", "generated",
               "timings", "digests")  # fmt: skip


def write_report(recipe: Recipe, chain: Any) -> str:
    """Write `reports/<run>.html` below the recipe's root and return its path (or URL); an older one is replaced."""
    store = open_store(recipe.root, recipe.storage)
    name = f"reports/{recipe.train.last.run}.html"
    store.put(name, report_page(store, recipe, chain).encode("utf-8", "replace"))
    local = store.local_path(name)
    return str(local) if local is not None else f"{store.url}/{name}"


def report_page(store: Store, recipe: Recipe, chain: Any) -> str:
    """Return the whole page."""
    run, album, originals = Run(chain), Album(), Originals(chain)
    learned = read_learned(store, recipe)
    try:
        # Before all others: these pictures come first.
        drawn = generated_section(store, learned, album, jobs_shown(recipe, album))
        sections = [
            funnel_section(run),
            losses_section(run),
            scores_section(run),
            sheets_section(run, album, originals),
            captions_section(run, album, originals),
            tokens_section(run, album, originals),
            training_section(learned, run.plan.plan_id if run.plan else None),
            evaluation_section(learned),
            drawn,
            timings_section(run, learned.metrics),
            digests_section(run),
        ]
    finally:
        originals.close()
    if album.refused:
        sections.append(note(f"{album.refused} pictures were left out to keep this file small."))
    top = header(run, [*counted(run), *headline(learned)])
    return _filled(f"{recipe.train.last.run} · tokenmill report", join(top, _navigation(), element("main", sections)))


def _navigation() -> Markup:
    return element("nav", *(element("a", name, href=f"#{name}") for name in _NAVIGATION), aria_label="sections")


def _filled(title: str, body: Markup) -> str:
    page = Template(Path(__file__).with_name("report_page.html").read_text(encoding="utf-8"))
    return page.substitute(title=element("title", title), body=body)
