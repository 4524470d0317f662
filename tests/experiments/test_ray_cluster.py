"""Tuning over a cluster of two machines, which Ray plays on this one."""

from pathlib import Path

import pytest

from recbole_rella import compat
from recbole_rella.experiments import ray_trials
from recbole_rella.experiments.ray_trials import _shares
from recbole_rella.experiments.tuning import tune


@pytest.fixture
def cluster(monkeypatch):
    compat.ray_environment()  # what ray needs to be imported
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_trials_run_on_the_cluster_that_the_environment_names(movies, cluster, monkeypatch):
    import ray

    name, tiny = movies
    Path("space.hyper").write_text("lora_r choice [2]\n")
    seen = []

    def shares(*arguments, **more):
        found = _shares(*arguments, **more)
        seen.append((found, sorted(node["Resources"]["CPU"] for node in ray.nodes())))
        return found

    monkeypatch.setattr(ray_trials, "_shares", shares)
    best, score, _ = tune("space.hyper", "ReLLa", name, None, tiny, tool="Ray", output_file="out/hyper.result")
    assert seen == [((2, {"cpu": 1, "gpu": 0}), [1, 2])] and not ray.is_initialized()
    assert best == {"lora_r": 2} and 0 < score <= 1
    assert Path("out/hyper.result").read_text().count("Test result:") == 1


MACHINES = {
    "one without GPUs": ([(8, 0)], None, True, 1, {"cpu": 8, "gpu": 0}),
    "one with four": ([(16, 4)], None, True, 4, {"cpu": 4, "gpu": 1}),
    "one with four, not wanted": ([(16, 4)], None, False, 1, {"cpu": 16, "gpu": 0}),
    "two trials a GPU": ([(16, 4)], 8, True, 8, {"cpu": 2, "gpu": 0.5}),
    "fewer trials than GPUs": ([(16, 4)], 2, True, 2, {"cpu": 8, "gpu": 1}),
    "three machines": ([(4, 0), (8, 1), (8, 2)], None, True, 3, {"cpu": 4, "gpu": 1}),
    "one trial, three machines": ([(4, 0), (8, 0), (8, 0)], 1, True, 1, {"cpu": 4, "gpu": 0}),
    "more trials than CPUs": ([(2, 0)], 5, True, 5, {"cpu": 1, "gpu": 0}),
}


@pytest.mark.parametrize("case", MACHINES)
def test_no_trial_asks_for_more_than_a_machine_has(case, monkeypatch):
    machines, asked, with_gpus, concurrency, share = MACHINES[case]
    compat.ray_environment()
    import ray

    nodes = [
        {"Alive": True, "Resources": {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}} for cpus, gpus in machines
    ]
    gone = [{"Alive": False, "Resources": {}}, {"Alive": True, "Resources": {"memory": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes + gone)
    assert _shares(asked, with_gpus) == (concurrency, share)


def test_a_trial_sees_the_gpus_that_ray_gave_it(monkeypatch):
    compat.ray_environment()
    import ray
    from ray.air import session

    given = []
    result = {"best_valid_score": 0.5, "best_valid_result": {}, "test_result": {}}
    monkeypatch.setattr(ray_trials, "objective_function", lambda params, files, callback: given.append((params, files)) or result)
    monkeypatch.setattr(session, "report", lambda metrics: None)
    for gpus, expected in (([2], "2"), ([], "")):
        monkeypatch.setattr(ray, "get_gpu_ids", lambda gpus=gpus: gpus)
        ray_trials._trial({"lora_r": 2}, "fixed.yaml")
        assert given.pop() == ({"lora_r": 2, "gpu_id": expected}, ["fixed.yaml"])
