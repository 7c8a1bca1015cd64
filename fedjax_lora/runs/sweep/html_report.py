"""One HTML page about a comparison: no network, no scripts, the figures inside."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedjax_lora.core.safe_text import printable
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.sweep import statistics
from fedjax_lora.runs.sweep.statistics import Line, Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 14px; }
.wide { overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem; text-align: left;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; } pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; }
.note { color: #666; font-size: 13px; } .failed { color: #a00; }
"""

NOTE = """Scores are those of the global model on the test set after the last round: mean, sample
standard deviation (sd) and Student's 95 % interval of the mean over seeds. Differences are paired
by seed. Lines in the figure are means over seeds, bands the same intervals; with fewer than 4
seeds thin lines are single runs instead. Panels are as high as single runs reach. A "-" stands
where there is no number: one seed has no deviation, and a model that has diverged no score. MB are
sums over all rounds and clients, as clients would send them. Where clients have device profiles,
"simulated h" is the time of all rounds on their clock, and "h to" a score the time until a round
reaches it: that of the stopping rule, or else the highest that every run reaches."""


CLIENTS_NOTE = """Accuracy on test examples mixed as each client's own: sum over classes of the
client's share of the class times the accuracy on it. "own" is the model that a client would begin
the next round with, cut to its rank, with its personal factors and head where a method or
heads='local' keeps them; "global" is the server's model. Means over seeds; the worst tenth is that
of each seed, and ranks are those after the last round."""


def page(
    lines: Sequence[Line],
    figure: bytes,
    *,
    title: str,
    command: str,
    errors: Mapping[str, str],
) -> str:
    """The page.

    Args:
      lines: the summary.
      figure: a PNG.
      title: what is compared.
      command: runs the comparison again.
      errors: what went wrong, by the name of the run.
    """
    header, body = statistics.shown(lines)
    runs = [run for line in lines for run in line.runs]
    common, varied = settings(runs)
    picture = base64.b64encode(figure).decode()
    parts = [
        f"<h1>{_escape(title)}</h1>",
        f'<p><img alt="{_escape(lines[0].metric)} over rounds and over bytes sent" '
        f'src="data:image/png;base64,{picture}"></p>',
        _table(header, body),
        f'<p class="note">{NOTE}</p>',
        *_clients(lines),
        *_failed(errors),
        "<h2>What differs between runs</h2>",
        _table(["setting", "values"], varied),
        "<h2>What all runs share</h2>",
        f"<details><summary>{len(common)} settings</summary>{_table(['setting', 'value'], common)}"
        "</details>",
        "<h2>Where it ran</h2>",
        _table(["", ""], environment(runs)),
        "<h2>Run it again</h2>",
        f"<p>Runs that are finished are not repeated.</p><pre>{_escape(command)}</pre>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{_escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def settings(runs: Sequence[Run]) -> tuple[list[list[str]], list[list[str]]]:
    """The config fields that are equal in all runs, and those that are not with their values."""
    trees = [_dotted(configs.to_dict(cell.config)) for cell, _ in runs]
    common, varied = [], []
    for field in trees[0]:
        values = list(dict.fromkeys(json.dumps(tree[field]) for tree in trees))
        shown = [_unquoted(value) for value in values]
        (varied if len(values) > 1 else common).append([field, "; ".join(shown)])
    return common, varied


def environment(runs: Sequence[Run]) -> list[list[str]]:
    """Versions, devices and base of the runs; several where they differ."""
    summaries = [record["summary"] for _, record in runs]
    found: dict[str, dict[str, None]] = {}
    for summary in summaries:
        versions = {"python": summary["python"], **summary["packages"]}
        given = versions | {"devices": summary["devices"], "base sha256": summary["base_sha256"]}
        for key, value in given.items():
            found.setdefault(key, {})[value] = None
    return [[key, "; ".join(values)] for key, values in found.items()]


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        inside = value.items() if isinstance(value, dict) else ()
        flat |= {f"{key}.{field}": x for field, x in inside} or {key: value}
    return flat


def _unquoted(value: str) -> str:
    held = json.loads(value)
    return held if isinstance(held, str) else value


def _escape(text: str) -> str:
    return html.escape(printable(text))


def _clients(lines: Sequence[Line]) -> list[str]:
    found = statistics.by_client(lines)
    if found is None:
        return []
    return ["<h2>Clients</h2>", _table(*found), f'<p class="note">{CLIENTS_NOTE}</p>']


def _failed(errors: Mapping[str, str]) -> list[str]:
    if not errors:
        return []
    items = "".join(f"<li>{_escape(where)}: {_escape(what)}</li>" for where, what in errors.items())
    return [f'<h2 class="failed">Runs that failed</h2><ul>{items}</ul>']


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    row = lambda tag, texts: (  # noqa: E731
        "<tr>" + "".join(f"<{tag}>{_escape(text)}</{tag}>" for text in texts) + "</tr>"
    )
    head = row("th", header) if any(header) else ""
    rows = "".join(row("td", texts) for texts in body)
    return f'<div class="wide"><table>{head}{rows}</table></div>'
