"""The options of ``fleet simulate``."""

from pathlib import Path
from typing import Annotated

import typer

from comfy_fleet.planning.generated import MAX_JOBS

POLICIES = "fair,fifo"
"""What is compared if nothing else is said."""
MAX_PRICE = 1_000_000
TRACE, FLEET, OTHER = "A made-up trace", "The made-up fleet", "What else is assumed"

TracePath = Annotated[
    Path | None,
    typer.Argument(
        help="A trace: JSON lines, one job each; also compressed (.gz).", show_default="a made-up one"
    ),
]
SchedulingPolicy = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="Policies to compare, with commas between them.", show_default=POLICIES
    ),
]
History = Annotated[
    bool, typer.Option("--history", help="Take the fleet's finished jobs; -n says how many at most.")
]
SaveTrace = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Save the trace; without --policy, nothing is simulated then."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--jobs",
        min=1,
        max=MAX_JOBS,
        metavar="N",
        rich_help_panel=TRACE,
        help="How many jobs.",
        show_default="by --rate and --for; of the history 1000",
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        metavar="R", rich_help_panel=TRACE, help="Jobs a second; 0: all at once.", show_default="0.25"
    ),
]
Length = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="TIME", rich_help_panel=TRACE, help="For how long they come.", show_default="1h"
    ),
]
Burst = Annotated[
    float | None,
    typer.Option(
        min=1,
        max=MAX_JOBS,
        metavar="N",
        rich_help_panel=TRACE,
        help="Jobs at the same moment, on average.",
        show_default="1",
    ),
]
Owners = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        metavar="N",
        rich_help_panel=TRACE,
        help="How many owners.",
        show_default="10",
    ),
]
OwnerSkew = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=10,
        metavar="S",
        rich_help_panel=TRACE,
        help="Zipf's exponent of their shares; 0: all alike.",
        show_default="1",
    ),
]
Sets = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=10_000,
        metavar="N",
        rich_help_panel=TRACE,
        help="How many sets of models; 0: jobs load none.",
        show_default="8",
    ),
]
SetSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", rich_help_panel=TRACE, help="Size of a set, or LEAST-MOST.", show_default="12GiB"
    ),
]
SetSkew = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=10,
        metavar="S",
        rich_help_panel=TRACE,
        help="Zipf's exponent of their popularity.",
        show_default="1",
    ),
]
RunTime = Annotated[
    str | None,
    typer.Option(metavar="TIME", rich_help_panel=TRACE, help="Median time of computing.", show_default="6s"),
]
RunSpread = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=5,
        metavar="S",
        rich_help_panel=TRACE,
        help="Standard deviation of its logarithm.",
        show_default="0.5",
    ),
]
Beside = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        rich_help_panel=TRACE,
        help="Median memory that a run needs beside its models; 0: any card is enough.",
        show_default="2GiB",
    ),
]
Editors = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="SHARE",
        rich_help_panel=TRACE,
        help="Share of editors' runs.",
        show_default="0",
    ),
]
Batches = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="SHARE",
        rich_help_panel=TRACE,
        help="Share of items of batches.",
        show_default="0",
    ),
]
FinishWithin = Annotated[
    float | None,
    typer.Option(
        min=1,
        max=1_000_000,
        metavar="X",
        rich_help_panel=TRACE,
        help="Jobs wish to be done within X times their run.",
        show_default="no wish",
    ),
]
Ttl = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        rich_help_panel=TRACE,
        help="Jobs expire if they wait longer.",
        show_default="never",
    ),
]
Nodes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP",
        rich_help_panel=FLEET,
        show_default="4x24GiB",
        help="Nodes and card: 8x24GiB, or 8x24GiB,speed=1.5,pool=big,price=0.8. Repeatable.",
    ),
]
FleetFile = Annotated[
    Path | None, typer.Option(metavar="FILE", rich_help_panel=FLEET, help="The nodes as TOML.")
]
Ram = Annotated[
    str, typer.Option(metavar="SIZE", rich_help_panel=FLEET, help="RAM that keeps files, by node.")
]
LoadRates = Annotated[
    str,
    typer.Option(metavar="RATES", rich_help_panel=FLEET, help="From disk to RAM, and from RAM to the card."),
]
Price = Annotated[
    float,
    typer.Option(min=0, max=MAX_PRICE, metavar="P", rich_help_panel=FLEET, help="Price of a node and hour."),
]
AnyPool = Annotated[
    bool, typer.Option("--any-pool", rich_help_panel=FLEET, help="All jobs and nodes are of one pool.")
]
Patience = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        rich_help_panel=OTHER,
        help="For how long `fair` may pass a job over beyond its turn.",
    ),
]
Weight = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OWNER=W",
        rich_help_panel=OTHER,
        help="An owner's weight, or /TENANT's; else 1. Repeatable.",
    ),
]
RunError = Annotated[
    float,
    typer.Option(
        min=0,
        max=5,
        metavar="E",
        rich_help_panel=OTHER,
        help="How far expected run times are off, 0.2: by a fifth.",
    ),
]
MemoryErrors = Annotated[
    float,
    typer.Option(
        min=0, max=1, metavar="E", rich_help_panel=OTHER, help="How far predicted memory is off at most."
    ),
]
GapTime = Annotated[
    str, typer.Option(metavar="TIME", rich_help_panel=OTHER, help="Between two jobs of a node.")
]
FailEvery = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", rich_help_panel=OTHER, help="Mean time until a node dies.", show_default="never"
    ),
]
Repair = Annotated[str, typer.Option(metavar="TIME", rich_help_panel=OTHER, help="How long it is down then.")]
EstimateEnds = Annotated[
    bool,
    typer.Option(
        "--estimates",
        rich_help_panel=OTHER,
        help="With policy fair: also how good the fleet's estimates of jobs' ends are.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", rich_help_panel=OTHER, help="Decides everything that is drawn.")
]
OwnerLabel = Annotated[
    str | None,
    typer.Option(metavar="LABEL", help="With --history: the label that says whose a job is."),
]
ModelSize = Annotated[
    str, typer.Option(metavar="SIZE", help="With --history: size of models whose size no node tells.")
]
