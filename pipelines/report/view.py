"""What the report is made from: plain data, JSON-able, so that a page can be made again from a stored run.

Every field may be missing or None: a run that is still going, failed early or was made by an older
version gets a page with what there is. Fractions (rates, shares) are 0..1, times are seconds.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

State = Literal["done", "cached", "failed", "skipped", "pruned", "running", "pending", "cancelled"]


class TrackingView(TypedDict, total=False):
    uri: str
    """Without its credentials."""
    run_id: str
    url: str
    """The run's page, where a server shows it."""


class RunView(TypedDict, total=False):
    name: str
    recipe: str
    state: State
    started: str
    """Local time as text, ISO 8601."""
    seconds: float
    command: str
    config: dict[str, Any]
    """The recipe's resolved config, nested."""
    store: str
    tracking: TrackingView


class ErrorView(TypedDict, total=False):
    type: str
    message: str
    remedy: str
    log: str
    """Path or URL of the stage's log."""


class MakerView(TypedDict, total=False):
    """Who made an artifact."""

    run: str
    """Name of the run in the store."""
    mlflow_run: str
    experiment_id: str
    fragment: str
    """The MLflow run's page below a server's address: `#/experiments/…/runs/…`."""
    url: str
    """The page itself, where a server shows it."""


class StageView(TypedDict, total=False):
    name: str
    task: str
    key: str
    state: State
    reason: str
    """Why it ran, or what it waits for."""
    seconds: float
    """Of the successful attempt; for a cached stage what it took when it was made."""
    started_offset_seconds: float
    """From the run's start; missing where the stage did not run in this run."""
    inputs: list[str]
    """Names of the stages it depends on."""
    metrics: dict[str, float]
    attempts: int
    decisions: list[str | dict[str, Any]]
    """What the executor decided (retry, smaller micro-batch, roll back …), as text or a flat dict."""
    made_by_run: str
    maker: MakerView
    error: ErrorView


class TrainingView(TypedDict, total=False):
    stage: str
    records: list[dict[str, float]]
    """metrics.jsonl: {step, loss, learning_rate, grad_norm, tokens …}."""
    baselines: dict[str, float]
    """name → loss in nats, drawn as dashed lines: {"unigram": 5.97}."""
    figures: dict[str, Any]
    """training.json, nested or flat."""
    throughput: dict[str, float] | float
    """tokens/s, or several named figures (tokens_per_second, mfu …)."""
    timings: dict[str, float]
    """step_<part>_seconds and memory/<part> in bytes, from the manifest."""
    placement: dict[str, Any]
    """Of the manifest: deepspeed_config, and memory_predicted (part → bytes)."""
    updates: list[dict[str, Any]]
    """updates.jsonl: {step, layers: {layer: [update ratio, weight norm, gradient norm]}}."""
    samples: list[dict[str, Any]]
    """samples.json: {step, samples: […]}, of {prompt, truth, written}, or {pieces: […]} of tokens,
    {truth, top: [[token, share]]} or {token, replaced: share, truth?}."""


class PointView(TypedDict, total=False):
    """One run of a sweep; counts are plain numbers, `loss` in the sweep's unit."""

    stage: str
    key: str
    run: str
    """Label of its training curve: the model's size."""
    line: int
    layers: int
    width: int
    params: float
    tokens: float
    flops: float
    loss: float
    learning_rate: float
    batch_tokens: float
    steps: int
    seconds: float
    maker: MakerView
    changed: str
    """Why the artifact is no longer the one that the fit was made from; missing where it is."""


class ScalingView(TypedDict, total=False):
    """sweep.json and fit.json of a fit's artifact."""

    stage: str
    key: str
    maker: MakerView
    variant: str
    architecture: str
    objective: str
    unit: str
    points: list[PointView]
    left_out: list[dict[str, str]]
    """{stage, reason}."""
    stopped: str
    next: dict[str, Any]
    """{flops, params, tokens, layers, width, predicted_loss, ci95}."""
    fit: dict[str, Any]
    """What `triptych fit --json` prints."""


class ProvenanceView(TypedDict, total=False):
    stage: str
    key: str
    code: dict[str, str]
    """module → digest."""
    inputs: dict[str, Any]
    """field → key, or list of keys."""


class View(TypedDict, total=False):
    run: RunView
    stages: list[StageView]
    """In topological order, as the plan lists them."""
    corpus: dict[str, Any] | list[dict[str, Any]]
    """corpus.json; several (with a `stage` each) where the run has several. The same for the next three.
    `components` are drawn as the composition, `funnel` as the funnel, a tokenizer's `examples` as split words."""
    tokenizer: dict[str, Any] | list[dict[str, Any]]
    examples: dict[str, Any] | list[dict[str, Any]]
    tokenizer_comparison: dict[str, Any] | list[dict[str, Any]]
    """comparison.json: {rows: [{kind, vocab_size, bytes_per_token, fertility, unknown_rate, whole_words}], examples:
    [{class, word, pieces: {tokenizer: [piece, …]}}]}."""
    training: list[TrainingView]
    results: list[dict[str, Any]]
    """rows of results.json: {task, metric, pretrained: {values, median, spread}, random: {…}, difference, pays,
    published}."""
    pretraining: list[dict[str, Any]]
    """of results.json: {objective, architecture, parameters, tokens, loss, unigram, ngram, order, …}."""
    scaling: list[ScalingView]
    scaling_comparison: dict[str, Any]
    """comparison.json: {variants: {name: {exponents, points, models, flops, unit}}, predictions: [{variant, stage, key,
    flops, params, tokens, layers, width, predicted_loss, ci95, measured_loss, error, maker}], pairs: those of
    `tasks.scaling.compare`, comparable}."""
    environment: dict[str, Any]
    """{python, packages: {name: version}, git: {commit, dirty} or text, host, cpu, …}."""
    provenance: list[ProvenanceView]
