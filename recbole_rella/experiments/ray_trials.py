"""Tuning with Ray: the same space, objective and results as RecBole's HyperTuning, several trials at a time, and ASHA.

Trials run on this machine, or on those of the Ray cluster that the environment variable RAY_ADDRESS names, as Ray has it.
"""

import logging
import math
import os

import torch

from recbole_rella import compat
from recbole_rella.given import no_command_line
from recbole_rella.quick_start import objective_function

logger = logging.getLogger(__name__)

# What a trial reports after every epoch, and what the search looks at.
SCORE = "valid_score"


def plain_metrics(result):
    """The metrics of what `objective_function` returns, as plain floats: best_valid_result and test_result, dict of dict."""
    return {
        name: {metric: float(value) for metric, value in (result[name] or {}).items()}
        for name in ("best_valid_result", "test_result")
    }


def _trial(params, fixed=None):
    """One trial, in a process of Ray's."""
    import ray
    from ray.air import session

    # RecBole's Config makes the GPUs of gpu_id the visible ones: here, those that Ray has given to this trial.
    gpus = ",".join(map(str, ray.get_gpu_ids()))
    with no_command_line():
        result = objective_function(
            {**params, "gpu_id": gpus},
            [fixed],
            callback=lambda epoch, score: session.report({SCORE: score, "done_by_itself": False}),
        )
    session.report({**result, **plain_metrics(result), SCORE: float(result["best_valid_score"]), "done_by_itself": True})


def _ray_space(space, algo):
    from ray import tune

    if algo == "exhaustive":
        return {key: tune.grid_search(values) for key, (_, values) in space.items()}
    make = {
        "choice": tune.choice,
        "uniform": lambda ends: tune.uniform(*ends),
        "quniform": lambda ends: tune.quniform(*ends),
        # RecBole's files hold the exponents, as hyperopt takes them.
        "loguniform": lambda ends: tune.loguniform(*map(math.exp, ends)),
    }
    return {key: make[kind](values) for key, (kind, values) in space.items()}


def _shares(concurrency, with_gpus):
    """How many trials run at a time, by default one a GPU, or one a machine without GPUs; and what each gets, at most a machine."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines)) if with_gpus else 0
    concurrency = concurrency or gpus or len(machines)
    cpus = [int(machine["CPU"]) for machine in machines]
    # A trial is one process with one GPU; the CPUs of several machines are no use to it.
    return concurrency, {"cpu": max(1, min(sum(cpus) // concurrency, min(cpus))), "gpu": min(1, gpus / concurrency)}


def ray_search(search, space, fixed, base, algo, max_evals, concurrency):
    """Fill a HyperTuning with the trials that Ray ran.

    Args:
        search (recbole.trainer.HyperTuning): gets parameters, scores and results.
        space (dict): of `read_space`.
        fixed (str): YAML file of the fixed settings.
        base (recbole.config.Config): of the fixed settings.
        algo (str), max_evals (int), concurrency (int or None): as for `tune`.
    """
    environment = compat.ray_environment()
    # Ray's strict check refuses trials that report their metric only after the first epoch.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    import ray
    from ray import air, tune
    from ray.tune.schedulers import ASHAScheduler

    began = not ray.is_initialized()
    if began and os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=environment)  # the cluster has its resources
    elif began:
        gpus = torch.cuda.device_count() if base["device"].type == "cuda" else 0
        # Not the cluster that another program of this machine may have started.
        ray.init(address="local", num_gpus=gpus, include_dashboard=False, runtime_env=environment)
    try:
        concurrency, share = _shares(concurrency, with_gpus=base["gpu_id"] != "")
        logger.info("Ray runs up to %d trials at a time, each with %s.", concurrency, share)
        mode = "max" if base["valid_metric_bigger"] else "min"
        options = {"metric": SCORE, "mode": mode, "max_concurrent_trials": concurrency}
        if algo == "bayes":
            from ray.tune.search import ConcurrencyLimiter
            from ray.tune.search.hyperopt import HyperOptSearch

            del options["max_concurrent_trials"]
            options["search_alg"] = ConcurrencyLimiter(HyperOptSearch(random_state_seed=base["seed"]), concurrency)
        elif algo == "random":
            from ray.tune.search.basic_variant import BasicVariantGenerator

            del options["max_concurrent_trials"]
            options["search_alg"] = BasicVariantGenerator(random_state=base["seed"], max_concurrent=concurrency)
        epochs = base["epochs"] + 1  # and the report of the whole trial
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, fixed=fixed), share),
            param_space=_ray_space(space, algo),
            tune_config=tune.TuneConfig(
                num_samples=1 if algo == "exhaustive" else max_evals,
                scheduler=ASHAScheduler(max_t=max(2, epochs), grace_period=1, reduction_factor=2),
                **options,
            ),
            run_config=air.RunConfig(
                storage_path=os.path.join(os.path.dirname(fixed), "ray"),
                verbose=1,
                failure_config=air.FailureConfig(max_failures=0),
            ),
        )
        results = tuner.fit()
    finally:
        if began:
            ray.shutdown()
    for result in results:
        _take(search, result, mode)


def _take(search, result, mode):
    params, metrics = dict(result.config or {}), result.metrics or {}
    text = search.params2str(params)
    if result.error is not None or SCORE not in metrics:
        logger.error("The trial %s failed: %s", text, result.error)
        return
    # A trial that ASHA stopped has scores, but was never tested; one that is best has come to its end.
    score = metrics[SCORE] if metrics.get("done_by_itself") else None
    if score is None:
        logger.info("The trial %s was stopped early, at %.4f.", text, metrics[SCORE])
        search.params2result[text] = {"best_valid_result": {SCORE: metrics[SCORE]}, "test_result": {}}
        return
    search.model = metrics["model"]
    search.params_list.append(text)
    search.score_list.append(score)
    search.params2result[text] = {name: metrics[name] for name in ("best_valid_result", "test_result")}
    better = search.best_score is None or (score > search.best_score if mode == "max" else score < search.best_score)
    if better:
        search.best_score, search.best_params = score, params
