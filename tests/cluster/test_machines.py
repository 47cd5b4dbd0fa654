"""Node types of a cluster launcher's file: what instance types bring, what labels change, what is refused."""

from pathlib import Path

import pytest
import yaml

from cluster.errors import BadConfig
from cluster.machines import INSTANCES, Machine, host_memory_bytes, read_cluster
from modeling.hardware import gpu

ROOT = Path(__file__).resolve().parents[2]


def cluster(folder: Path, **kinds: dict) -> Path:
    path = folder / "cluster.yaml"
    types = {"head": {"resources": {"CPU": 0}, "node_config": {}}, **kinds}
    path.write_text(yaml.safe_dump({"max_workers": 4, "head_node_type": "head", "available_node_types": types}))
    return path


def test_our_own_file():
    cpu, worker = read_cluster(ROOT / "ray_config.yaml")
    assert (cpu.name, cpu.gpus, cpu.cpus, cpu.memory_gib) == ("cpu_worker", 0, 16, 64)
    assert worker == Machine("gpu_worker", "L4", 4, 48, 192, 40, 4.6, 8)


def test_labels_go_over_what_is_known_of_the_instance_type(tmp_path):
    labels = {"triptych/usd-per-hour": "9.5", "triptych/network-gbit": "100", "ray.io/accelerator-type": "A100-40GB"}
    kinds = {
        "known": {"resources": {"GPU": 8}, "node_config": {"InstanceType": "p5.48xlarge"}, "max_workers": 9},
        "labelled": {"resources": {"CPU": 8, "GPU": 2, "memory": 64 << 30}, "node_config": {}, "labels": labels},
    }
    known, labelled = read_cluster(cluster(tmp_path, **kinds))
    assert (known.gpu, known.gpus, known.network_gbit, known.most) == ("H100", 8, 3200, 4)
    assert labelled == Machine("labelled", "A100-40GB", 2, 8, 64, 100, 9.5, 4)


def test_what_is_no_clusters_file_is_refused_by_name(tmp_path):
    with pytest.raises(BadConfig, match="missing.yaml"):
        read_cluster(tmp_path / "missing.yaml")
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with pytest.raises(BadConfig, match="no available_node_types"):
        read_cluster(tmp_path / "other.yaml")
    kind = {"resources": {"GPU": 1}, "node_config": {}, "labels": {"triptych/usd-per-hour": "cheap"}}
    with pytest.raises(BadConfig, match=r"available_node_types\.w\.labels\.triptych/usd-per-hour is 'cheap'"):
        read_cluster(cluster(tmp_path, w=kind))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_workers: abc", "max_workers is 'abc', expected a number"),
        ("max_workers:", "max_workers is empty, expected a number"),
        ("max_workers: -1", "max_workers is -1, expected a number, 0 or more"),
        ("  w: { resources: { CPU: x } }", "available_node_types.w.resources.CPU is 'x'"),
        ("  w: { resources: { memory: much } }", "available_node_types.w.resources.memory is 'much'"),
        ("  w: { max_workers: yes }", "available_node_types.w.max_workers is True"),
        ("  w: 3", "available_node_types.w is 3, expected keys and values"),
        ("  w: { resources: 4 }", "available_node_types.w.resources is 4, expected keys and values"),
        ("  w: { node_config: p5 }", "available_node_types.w.node_config is 'p5'"),
        ("  w: { labels: [a] }", "available_node_types.w.labels is ['a']"),
        ("  w: { labels: { triptych/memory-gib: .nan } }", "labels.triptych/memory-gib is nan"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(tmp_path, text, said):
    path = tmp_path / "cluster.yaml"
    top, kind = (text, "  w: {}") if text.startswith("max") else ("", text)
    path.write_text(f"{top}\nhead_node_type: head\navailable_node_types:\n  head: {{}}\n{kind}\n")
    with pytest.raises(BadConfig) as raised:
        read_cluster(path)
    assert f"--cluster {path}: " in str(raised.value) and said in str(raised.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"max_workers: 2 # \xff\n")
    with pytest.raises(BadConfig, match="is not UTF-8 at byte 17"):
        read_cluster(path)


def test_node_types_may_be_left_empty(tmp_path):
    (tmp_path / "c.yaml").write_text("available_node_types:\n  1: { resources: , labels: }\n  b:\n")
    assert [machine.name for machine in read_cluster(tmp_path / "c.yaml")] == ["1", "b"]


def test_every_instance_has_a_gpu_of_the_table():
    assert all(gpu(found["gpu"]).memory_gib > 0 for found in INSTANCES.values() if found["gpu"])


def test_this_machine_has_memory():
    assert host_memory_bytes() > 1 << 30
