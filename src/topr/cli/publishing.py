"""`topr card` and `topr push`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from topr.cli.console import say

Published = Annotated[
    Path, typer.Argument(help="A finished run, a training's output, a model, or rollouts.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(card)
    app.command()(push)


def card(directory: Published) -> None:
    """Write README.md next to a model or rollouts: lineage, recipe, results. Then say the licence.

    A README.md that is there is not overwritten; `topr push` uploads it as it is.
    """
    from topr.hub import CARD
    from topr.publish.upload import pack
    from topr.store import atomic_path

    parcel = pack(directory)
    with atomic_path(parcel.folder / CARD, overwrite=False) as temporary:
        temporary.write_text(parcel.card, encoding="utf-8")
    say(f"card: {parcel.folder / CARD}")


def push(
    directory: Published,
    name: Annotated[str, typer.Argument(help="Repository on the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="If it is made now.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch; made if it is not there. None: the default one.")
    ] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Overwrite a README.md that the hub has.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be uploaded, and upload nothing.")
    ] = False,
) -> None:
    """Upload a model or rollouts with a card. The token is HF_TOKEN or that of `hf auth login`."""
    from topr.hub import CARD, upload
    from topr.publish.upload import pack, with_whole_shards
    from topr.store import refers

    parcel = pack(directory)
    for file, path in parcel.files.items():
        size = f"{path.stat().st_size:,} bytes" + (
            ", whole rows in the upload" if refers(path) else ""
        )
        say(f"{file}  {size}")
    say(f"{CARD}  {len(parcel.card.encode('utf-8')):,} bytes")
    if dry_run:
        typer.echo("\n" + parcel.card, nl=False)
        return
    with TemporaryDirectory(prefix=".topr-push-", dir=parcel.folder.parent) as work:
        parcel = with_whole_shards(parcel, Path(work))
        done = upload(
            name,
            parcel.kind,
            parcel.files,
            parcel.card,
            private=private,
            revision=revision,
            replace_card=replace_card,
            message=f"Upload {parcel.kind} with topr",
        )
    if done.kept_card:
        say(f"the hub has a {CARD} already, which was left alone (--replace-card)")
    say(f"{parcel.kind}: {done.url}")
