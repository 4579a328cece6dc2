"""What the path of a cgroup says: units, containers and pods, by the forms that engines give them."""

from __future__ import annotations

import string

import pytest
from aggregate_events import added, counts, flow, removed
from hypothesis import given
from hypothesis import strategies as st

from nstat_async import Flow, Process, Provider, UsageError, filters, json
from nstat_async._cli._cells import place_text, short_id
from nstat_async._workload import REMEMBERED, workload_of
from nstat_async.aggregate import GroupBy, History, HistoryWriter, ProcessTable, TrafficTable

ID = "0ad68148eb4fce3fc800736d24ad60ba0ad68148eb4fce3fc800736d24ad60ba"
OTHER = "f" * 64
UID = "12345678-9abc-def0-1234-56789abcdef0"
UID_ = UID.replace("-", "_")
HASH = "0123456789abcdef" * 2
DOCKER = f"docker-{ID}.scope"


@pytest.mark.parametrize(
    ("path", "unit", "container", "pod"),
    [
        ("/", None, None, None),
        ("", None, None, None),
        # systemd: the first that is no slice
        ("/init.scope", "init.scope", None, None),
        ("/system.slice/nginx.service", "nginx.service", None, None),
        ("/system.slice/nginx.service/worker", "nginx.service", None, None),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", None, None),
        ("/system.slice/dbus.socket", "dbus.socket", None, None),
        (r"/system.slice/dev-disk-by\x2dlabel-swap.swap", r"dev-disk-by\x2dlabel-swap.swap", None, None),
        ("/system.slice/_cgroup.service", "cgroup.service", None, None),
        ("/system.slice/__odd.service", "_odd.service", None, None),
        ("/system.slice", None, None, None),
        ("/a.slice/.service", None, None, None),
        ("/foo/nginx.service", None, None, None),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", None, None),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service", None, None),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service", None, None),
        (
            r"/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome\x2dx-77.scope",
            r"app-org.gnome\x2dx-77.scope",
            None,
            None,
        ),
        ("/../../system.slice/cron.service", "cron.service", None, None),
        # container engines, with systemd's and with plain directories
        (f"/system.slice/{DOCKER}", DOCKER, ID, None),
        (f"/system.slice/{DOCKER}/init.scope", DOCKER, ID, None),
        (f"/docker/{ID}", None, ID, None),
        (f"/../{DOCKER}", DOCKER, ID, None),
        (f"/machine.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID, None),
        (f"/libpod_parent/libpod-{ID}", None, ID, None),
        (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", None, None),
        (f"/libpod_parent/conmon-{ID}", None, None, None),
        (f"/kubepods.slice/crio-conmon-{ID}.scope", f"crio-conmon-{ID}.scope", None, None),
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
            f"libpod-{ID}.scope",
            ID,
            None,
        ),
        (f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope", f"libpod-{ID}.scope", ID, OTHER),
        (f"/docker/{OTHER}/docker/{ID}", None, ID, None),
        ("/docker/short", None, None, None),
        (f"/docker/{ID}0", None, None, None),
        (f"/ecs/{HASH}/{HASH}-0123456789", None, f"{HASH}-0123456789", None),
        # Kubernetes
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope",
            f"cri-containerd-{ID}.scope",
            ID,
            UID,
        ),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope", f"crio-{ID}.scope", ID, UID),
        (f"/kubepods/besteffort/pod{UID}/{ID}", None, ID, UID),
        (f"/kubepods/pod{UID}", None, None, UID),
        (f"/kubepods/pod{HASH}/{ID}", None, ID, HASH),
        (
            f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}",
            "containerd.service",
            ID,
            UID,
        ),
        (
            f"/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-pod{UID_}.slice/cri-containerd-{ID}.scope",
            f"docker-{OTHER}.scope",
            ID,
            UID,
        ),
        # LXC, systemd-nspawn, libvirt
        ("/lxc/web", None, "web", None),
        ("/lxc/101/ns/system.slice/cron.service", None, "101", None),
        ("/lxc.payload.web", None, "web", None),
        ("/lxc.payload/web/init.scope", None, "web", None),
        ("/lxc.monitor.web", None, None, None),
        ("/machine.slice/systemd-nspawn@deb-12.service/payload", "systemd-nspawn@deb-12.service", "deb-12", None),
        (r"/machine.slice/machine-my\x2dbox.scope", r"machine-my\x2dbox.scope", "my-box", None),
        (r"/machine.slice/machine-lxc\x2d1234\x2dbox.scope", r"machine-lxc\x2d1234\x2dbox.scope", "box", None),
        (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope", r"machine-qemu\x2d1\x2dvm.scope", None, None),
        (r"/machine.slice/machine-\xc3\xa4.scope", r"machine-\xc3\xa4.scope", "ä", None),
    ],
)
def test_a_path_says_who_runs_there(path, unit, container, pod):
    assert workload_of(path) == (unit, container, pod)


@given(st.text(alphabet=string.printable + "\\x-:_/.äß\u202e", max_size=200))
def test_any_path_has_an_answer_that_is_never_empty(path):
    assert "" not in workload_of(path)


def test_what_is_kept_is_bounded():
    for number in range(REMEMBERED + 10):
        workload_of(f"/{number}")
    assert workload_of.cache_info().currsize == REMEMBERED


# --- in every output ------------------------------------------------------------------

WEB = f"/kubepods/pod{UID}/{ID}"
BOX = Flow("a", Provider.TCP, cgroup=WEB, container="web", pod="prod/web-0")
UNIT = Flow("b", Provider.TCP, cgroup="/system.slice/nginx.service/x")
BARE = Flow("c", Provider.TCP)


def test_a_flow_has_it_in_json_both_ways():
    line = json.dumps(added(BOX, 1.0, counts(5)))
    assert json.loads(line).flow == BOX
    assert json.to_dict(BOX) | {
        "cgroup": WEB,
        "container": "web",
        "container_id": ID,
        "pod": "prod/web-0",
        "pod_uid": UID,
    } == json.to_dict(BOX)
    assert json.to_dict(UNIT)["unit"] == "nginx.service"
    assert json.loads(json.dumps(added(UNIT, 1.0, None))).flow.unit == "nginx.service"
    assert not {"cgroup", "unit", "container", "pod"} & json.to_dict(BARE).keys()


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("unit=nginx.service", "b"),
        ("unit=nginx", "b"),
        ("unit=nginx.service.service", ""),
        ("unit=web", ""),
        ("container=web", "a"),
        (f"container={ID}", "a"),
        (f"container={ID[:12]}", "a"),
        (f"container={ID[:11]}", ""),
        ("pod=prod/web-0", "a"),
        (f"pod={UID}", "a"),
        ("cgroup=/system.slice", "b"),
        ("cgroup=/system.slice/nginx.service/", "b"),
        ("cgroup=/system.slice/nginx.ser", ""),
        ("cgroup=system.slice", "b"),
        ("cgroup=nginx.service", ""),
        ("cgroup=/", "ab"),
        ("cgroup=//", "ab"),
        ("~container=web", "bc"),
    ],
)
def test_a_filter_asks_for_it(text, passed):
    wanted = filters.parse(text)
    assert "".join(each.id for each in (BOX, UNIT, BARE) if wanted(each)) == passed


@pytest.mark.parametrize("make", [filters.by_unit, filters.by_container, filters.by_pod, filters.by_cgroup])
@pytest.mark.parametrize("values", [(), ("",), (7,)])
def test_a_filter_refuses_what_is_no_name(make, values):
    with pytest.raises(UsageError, match=make.__name__):
        make(*values)


@pytest.mark.parametrize(
    ("group", "keys"),
    [
        (GroupBy.unit(), ["nginx.service", None]),
        (GroupBy.container(), ["web", None]),
        (GroupBy.pod(), ["prod/web-0", None]),
        (GroupBy.field("cgroup path"), [WEB, "/system.slice/nginx.service/x", None]),
    ],
)
def test_a_table_groups_by_it_without_any_process(group, keys):
    table = TrafficTable(group, include_history=True)
    table.feed_many([added(each, 1.0, counts(5)) for each in (BOX, UNIT, BARE)])
    assert sorted((row.key for row in table.rows()), key=str) == sorted(keys, key=str)
    assert table.total().rx_bytes == 15


def test_a_process_has_the_cgroup_of_its_first_socket_of_which_it_is_known():
    process = Process(7, "nginx", 70)
    bare, unit, other = (flow(name, process, **more) for name, more in (
        ("a", {}), ("b", {"cgroup": UNIT.cgroup}), ("c", {"cgroup": WEB, "container": "web", "pod": "p"})
    ))  # fmt: skip
    table = ProcessTable(include_history=True)
    table.feed_many([added(each, 1.0, counts(5)) for each in (bare, unit, other)])
    (row,) = table.rows()
    assert (row.cgroup, row.unit, row.container) == (UNIT.cgroup, "nginx.service", None)
    assert json.loads(json.dumps(row, time=1.0)).unit == "nginx.service"
    merged = ProcessTable()
    merged.merge(table, "host")
    assert merged.rows()[0].unit == "nginx.service"


def test_a_history_keeps_it(tmp_path):
    boxed = flow("a", Process(7, "nginx", 70), cgroup=WEB, container="web", pod="prod/web-0")
    with HistoryWriter(tmp_path / "h.sqlite") as writer:
        writer.feed_many([added(boxed, 1, counts(5)), removed(boxed, 2, counts(7))])
    with History(tmp_path / "h.sqlite") as history:
        (used,) = history.usage(by="process")
    assert (used.cgroup, used.unit, used.container, used.pod) == (WEB, None, "web", "prod/web-0")


@pytest.mark.parametrize(
    ("text", "shown"),
    [(ID, ID[:12]), (DOCKER, f"docker-{ID[:12]}….scope"), ("nginx.service", "nginx.service"), ("web", "web")],
)
def test_ids_of_containers_are_cut_short_for_people(text, shown):
    assert short_id(text) == shown


@pytest.mark.parametrize(
    ("flow", "place"),
    [
        (BOX, "container:web"),
        (UNIT, "unit:nginx.service"),
        (BARE, ""),
        (Flow("d", Provider.TCP, cgroup=f"/{DOCKER}", container=ID), f"container:{ID[:12]}"),
        (Flow("e", Provider.TCP, cgroup="/a.slice/\x1b[31m.service"), "unit:\\x1b[31m.service"),
    ],
)
def test_the_text_of_a_flow_says_its_container_or_unit(flow, place):
    assert place_text(flow) == place
