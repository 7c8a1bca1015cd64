"""Conclusions and tables of Fed-PLoRA against FlexLoRA, from the result files alone."""

from experiments.papers.fed_plora_vs_flexlora import METHODS, RATES, STUDY, best_rate, tuned, tuning
from experiments.papers.fed_plora_vs_flexlora.differences import figures, known, outcome
from experiments.tools.claims import spread
from experiments.tools.markdown import as_table
from experiments.tools.report import Report, picture, publish
from experiments.tools.study import Part, Results
from fedjax_lora.runs.sweep.intervals import estimate


def answer(results: Results) -> str:
    """Format the outcome with its figure, and the tuned rates."""
    figure = picture(results, "differences", "paired differences") if known(results) else ""
    return "\n".join([outcome(results), figure, _rates(results)])


def _rates(results: Results) -> str:
    """Tabulate the validation accuracy of every rate, the selected one in bold."""
    size = results.size
    header = ["task", "method", *(f"rate {rate:g}" for rate in RATES[size])]
    rows = [
        [part.name.replace("tuning", task), *_rate_row(results, part, task, method)]
        for part in tuning(size, results.records)
        for task in part.tasks
        for method in METHODS
        if tuned(method, RATES[size][0]) in part.arms
    ]
    return "Validation accuracy, by which rates were chosen:\n\n" + as_table(header, rows)


def _rate_row(results: Results, part: Part, task: str, method: str) -> list[str]:
    size, rates = results.size, RATES[results.size]
    runs = [results.runs(part.name, tuned(method, rate), task) for rate in rates]
    cells = [_tuned_cell([_validated(r) for r in of_rate.values()]) for of_rate in runs]
    if all(len(of_rate) == len(part.seeds) for of_rate in runs):
        chosen = rates.index(best_rate(size, results.records, method, task, part.name))
        cells[chosen] = f"**{cells[chosen]}**"
    return [method, *cells]


def _validated(record: dict) -> float:
    return record["history"][-1]["validation_accuracy"]


def _tuned_cell(values: list[float]) -> str:
    return spread(estimate(values)) if values else "-"


REPORT = Report(STUDY, extra=answer, figures=figures)

if __name__ == "__main__":
    publish(REPORT)
