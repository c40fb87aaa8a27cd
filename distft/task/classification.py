"""What is said of predicted classes and numbers, by scikit-learn."""

import html
import json
from typing import Any

import numpy as np

from distft.errors import ConfigError
from distft.task.seam import Scores

PER_CLASS = "per_class.json"
PAGE = "confusion_matrix.html"


def weights(wanted: str | dict[str, float], labels: list[str], counts: list[int]) -> list[float] | None:
    """How much each class counts in the loss: the mean over the training rows is 1, so that losses stay comparable.

    Raises ConfigError for weights of classes that the data does not have, or not of all it has.
    """
    if wanted == "none" or not labels:
        return None
    raw = {label: 1 / count for label, count in zip(labels, counts, strict=True)} if wanted == "balanced" else wanted
    assert isinstance(raw, dict)
    if set(raw) != set(labels):
        raise ConfigError(
            f"task.class_weights: must name each class of the data once, {', '.join(labels)}, got "
            f"{', '.join(raw) or 'none'}; add or remove {', '.join(sorted(set(raw) ^ set(labels)))}"
        )
    mean = sum(raw[label] * count for label, count in zip(labels, counts, strict=True)) / sum(counts)
    return [raw[label] / mean for label in labels]


def scores(truth: np.ndarray, found: np.ndarray, labels: list[str]) -> Scores:
    """Of one class a row: `truth` and `found` are class numbers [N]."""
    from sklearn.metrics import confusion_matrix

    every = list(range(len(labels)))
    table = per_class(truth, found, labels)
    matrix = confusion_matrix(truth, found, labels=every)
    files = {PER_CLASS: json.dumps(table, indent=2, ensure_ascii=False), PAGE: page(matrix, labels, table)}
    return Scores(numbers(truth, found), files)


def multi_label_scores(truth: np.ndarray, found: np.ndarray, labels: list[str]) -> Scores:
    """Of several classes a row: bool [N, classes]. `accuracy` counts rows with every class right."""
    table = per_class(truth, found, labels)
    return Scores(numbers(truth, found), {PER_CLASS: json.dumps(table, indent=2, ensure_ascii=False)})


def regression_scores(truth: np.ndarray, found: np.ndarray) -> Scores:
    """Of a number a row. Correlations of constant values are NaN."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_squared_error

    truth, found = truth.astype(np.float64), found.astype(np.float64)
    varied = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(found) > 0
    return Scores(
        {
            "mse": float(mean_squared_error(truth, found)),
            "pearson": float(pearsonr(truth, found).statistic) if varied else float("nan"),
            "spearman": float(spearmanr(truth, found).statistic) if varied else float("nan"),
        }
    )


def per_class(truth: np.ndarray, found: np.ndarray, labels: list[str]) -> dict[str, dict[str, float]]:
    from sklearn.metrics import precision_recall_fscore_support

    every = list(range(len(labels)))
    columns = precision_recall_fscore_support(truth, found, labels=every, zero_division=0)
    names = ("precision", "recall", "f1", "rows")
    return {
        label: {name: float(column[i]) for name, column in zip(names, columns, strict=True)}
        for i, label in enumerate(labels)
    }


def numbers(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """A row whose `found` is -1 has no class: it is wrong."""
    from sklearn.metrics import accuracy_score, f1_score

    classes = np.setdiff1d(np.union1d(truth, found), [-1]) if truth.ndim == 1 else None
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "macro_f1": float(f1_score(truth, found, labels=classes, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(truth, found, labels=classes, average="micro", zero_division=0)),
    }


def page(matrix: np.ndarray, labels: list[str], table: dict[str, dict[str, float]]) -> str:
    """The confusion matrix and the table as one page that loads nothing."""
    from plotly.graph_objects import Figure, Heatmap

    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    cells = Heatmap(
        z=share, x=labels, y=labels, text=matrix, texttemplate="%{text}", colorscale="Blues", zmin=0, zmax=1
    )
    figure = Figure(cells)
    figure.update_xaxes(title_text="predicted", type="category")
    figure.update_yaxes(title_text="label", type="category", autorange="reversed")
    figure.update_layout(template="plotly_white", height=max(420, 40 * len(labels) + 160))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Confusion matrix</title></head><body>'
        f"{figure.to_html(full_html=False, include_plotlyjs=True, include_mathjax=False)}{_rows(table)}</body></html>"
    )


def _rows(table: dict[str, dict[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("class", "precision", "recall", "f1", "rows"))
    body = "".join(
        f"<tr><td>{html.escape(label)}</td>"
        + "".join(f"<td>{value:.3f}</td>" for value in list(row.values())[:3])
        + f"<td>{row['rows']:.0f}</td></tr>"
        for label, row in table.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>"
