"""The structures of the protocol in every release, as one table.

Each row is a field: its name in the kernel's header, its type, and its offset in
each wire layout. ``{1: 56, 7: 108}`` reads "56 from layout 1 on, 108 from layout 7
on"; the type may change the same way. `None` ends a field.

The layouts are numbered by the releases that changed a byte:

==  =========================  ==============
 1  xnu-1699                   10.7
 2  xnu-2050                   10.8
 3  xnu-2422                   10.9
 4  xnu-2782                   10.10
 5  xnu-3247, 3248             10.11
 6  xnu-3789                   10.12
 7  xnu-4570 to 6153           10.13 to 10.15
 8  xnu-7195                   11
 9  xnu-8019.41                12.0
10  xnu-8019.61 to 8796        12.1 to 13
11  xnu-10002 to 11417         14 to 15
12  xnu-12377                  26
==  =========================  ==============

A compiler computed all layouts from the public headers of all 85 tags, and of
xnu-12377.121.6. Up to layout 6 structures are packed to 4 bytes, from 7 on naturally aligned.
Padding and reserved bytes have no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Union

OLDEST = 1
NEWEST = 12

Since = Mapping[int, Union[int, str, None]]
Row = tuple[str, Union[str, Since], Since]
StructTable = tuple[Since, tuple[Row, ...]]

MEDIA = ("total", "cellular", "wifi_infra", "wifi_non_infra", "wired", "bluetooth", "alternate")
_TRAFFIC = (("rxpackets", "U64", 0), ("rxbytes", "U64", 8), ("txpackets", "U64", 16), ("txbytes", "U64", 24),
            ("activity_bitmap.start", "U64", 32), ("activity_bitmap.bitmap", "U64*2", 40))  # fmt: skip


def _media_rows() -> tuple[Row, ...]:
    return tuple(
        (f"media_stats.{medium}.{name}", kind, {12: 56 * index + offset})
        for index, medium in enumerate(MEDIA)
        for name, kind, offset in _TRAFFIC
    )


_LINK_COMMON = (
    "valid_bitmask link_quality_metric ul_effective_bandwidth ul_max_bandwidth ul_min_latency ul_effective_latency "
    "ul_max_latency ul_retxt_level ul_bytes_lost "
)
_LINK_BLOCKS = {
    "cellular": _LINK_COMMON + "ul_min_queue_size ul_avg_queue_size ul_max_queue_size dl_effective_bandwidth "
    "dl_max_bandwidth config_inactivity_time config_backoff_time",
    "wifi": _LINK_COMMON + "ul_error_rate dl_effective_bandwidth dl_max_bandwidth dl_min_latency dl_effective_latency "
    "dl_max_latency dl_error_rate config_frequency config_multicast_rate scan_count scan_duration",
}
"""The two forms of an interface's link status, a union: u32 values one after the other."""


def _link_rows() -> tuple[Row, ...]:
    return tuple(
        (f"link_status.u.{block}.{name}", "U32", {5: 168 + 4 * index, 7: 16 + 4 * index})
        for block, names in _LINK_BLOCKS.items()
        for index, name in enumerate(names.split())
    )


STRUCTS: Mapping[str, StructTable] = {
    "nstat_msg_hdr": (
        {1: 16},
        (
            ("context", "U64", {1: 0}),
            ("type", "U32", {1: 8}),
            ("length", "U16", {5: 12}),
            ("flags", "U16", {5: 14}),
        ),
    ),
    "nstat_msg_error": (
        {1: 20, 7: 24},
        (("error", "U32", {1: 16}),),
    ),
    "nstat_msg_add_src": (
        {1: 20, 7: 24},
        (("provider", "U32", {1: 16}),),
    ),
    "nstat_msg_add_all_srcs": (
        {1: 20, 5: 28, 6: 56},
        (
            ("filter", "U64", {5: 20, 7: 16}),
            ("events", "U64", {6: 28, 7: 24}),
            ("provider", "U32", {1: 16, 7: 32}),
            ("target_pid", "I32", {6: 36}),
            ("target_uuid", "UUID", {6: 40}),
        ),
    ),
    "nstat_msg_rem_src": (
        {1: 20, 6: 24},
        (("srcref", {1: "U32", 6: "U64"}, {1: 16}),),
    ),
    "nstat_msg_query_src": (
        {1: 20, 6: 24},
        (("srcref", {1: "U32", 6: "U64"}, {1: 16}),),
    ),
    "nstat_msg_get_src_description": (
        {1: 20, 6: 24},
        (("srcref", {1: "U32", 6: "U64"}, {1: 16}),),
    ),
    "nstat_msg_set_filter": (
        {3: 24, 6: 28, 7: 32},
        (
            ("srcref", {3: "U32", 6: "U64"}, {3: 16}),
            ("filter", "U32", {3: 20, 6: 24}),
        ),
    ),
    "nstat_msg_src_added": (
        {1: 24, 6: 28, 7: 32},
        (
            ("srcref", {1: "U32", 6: "U64"}, {1: 20, 7: 16}),
            ("provider", "U32", {1: 16, 7: 24}),
        ),
    ),
    "nstat_msg_src_removed": (
        {1: 20, 6: 24},
        (("srcref", {1: "U32", 6: "U64"}, {1: 16}),),
    ),
    "nstat_msg_src_description": (
        {1: 24, 6: 36, 7: 40},
        (
            ("srcref", {1: "U32", 6: "U64"}, {1: 16}),
            ("event_flags", "U64", {6: 24}),
            ("provider", "U32", {1: 20, 6: 32}),
        ),
    ),
    "nstat_msg_src_counts": (
        {1: 84, 3: 116, 4: 132, 6: 144},
        (
            ("srcref", {1: "U32", 6: "U64"}, {1: 16}),
            ("event_flags", "U64", {6: 24}),
            ("counts", "COUNTS", {1: 20, 6: 32}),
        ),
    ),
    "nstat_msg_src_update": (
        {5: 136, 6: 148, 7: 152},
        (
            ("srcref", {5: "U32", 6: "U64"}, {5: 16}),
            ("event_flags", "U64", {6: 24}),
            ("counts", "COUNTS", {5: 20, 6: 32}),
            ("provider", "U32", {5: 132, 6: 144}),
        ),
    ),
    "nstat_msg_sysinfo_counts": (
        {4: 28, 6: 32},
        (
            ("srcref", {4: "U32", 6: "U64"}, {4: 16}),
            ("counts.nstat_sysinfo_len", "U32", {4: 20, 6: 24}),
        ),
    ),
    "nstat_msg_src_extended_item_hdr": (
        {9: 8},
        (
            ("type", "U32", {9: 0}),
            ("length", "U32", {9: 4}),
        ),
    ),
    "nstat_counts": (
        {1: 64, 3: 96, 4: 112},
        (
            ("nstat_rxpackets", "U64", {1: 0}),
            ("nstat_rxbytes", "U64", {1: 8}),
            ("nstat_txpackets", "U64", {1: 16}),
            ("nstat_txbytes", "U64", {1: 24}),
            ("nstat_cell_rxbytes", "U64", {3: 64, 7: 32}),
            ("nstat_cell_txbytes", "U64", {3: 72, 7: 40}),
            ("nstat_wifi_rxbytes", "U64", {3: 80, 7: 48}),
            ("nstat_wifi_txbytes", "U64", {3: 88, 7: 56}),
            ("nstat_wired_rxbytes", "U64", {4: 96, 7: 64}),
            ("nstat_wired_txbytes", "U64", {4: 104, 7: 72}),
            ("nstat_rxduplicatebytes", "U32", {1: 32, 7: 80}),
            ("nstat_rxoutoforderbytes", "U32", {1: 36, 7: 84}),
            ("nstat_txretransmit", "U32", {1: 40, 7: 88}),
            ("nstat_connectattempts", "U32", {1: 44, 7: 92}),
            ("nstat_connectsuccesses", "U32", {1: 48, 7: 96}),
            ("nstat_min_rtt", "U32", {1: 52, 7: 100}),
            ("nstat_avg_rtt", "U32", {1: 56, 7: 104}),
            ("nstat_var_rtt", "U32", {1: 60, 7: 108}),
        ),
    ),
    "nstat_tcp_descriptor": (
        {1: 168, 2: 172, 3: 216, 4: 252, 5: 260, 7: 304, 8: 336, 11: 344},
        (
            ("upid", "U64", {1: 92, 2: 96, 4: 116, 7: 0}),
            ("eupid", "U64", {3: 172, 4: 192, 7: 8}),
            ("start_timestamp", "U64", {7: 16}),
            ("timestamp", "U64", {7: 24}),
            ("rx_transfer_size", "U64", {8: 32}),
            ("tx_transfer_size", "U64", {8: 40}),
            ("activity_bitmap.start", "U64", {7: 32, 8: 48}),
            ("activity_bitmap.bitmap", "U64*2", {7: 40, 8: 56}),
            ("ifindex", "U32", {1: 56, 8: 72}),
            ("state", "U32", {1: 60, 8: 76}),
            ("sndbufsize", "U32", {1: 64, 8: 80}),
            ("sndbufused", "U32", {1: 68, 8: 84}),
            ("rcvbufsize", "U32", {1: 72, 8: 88}),
            ("rcvbufused", "U32", {1: 76, 8: 92}),
            ("txunacked", "U32", {1: 80, 8: 96}),
            ("txwindow", "U32", {1: 84, 8: 100}),
            ("txcwindow", "U32", {1: 88, 8: 104}),
            ("traffic_class", "U32", {2: 92, 8: 108}),
            ("traffic_mgt_flags", "U32", {4: 96, 8: 112}),
            ("pid", "U32", {1: 100, 2: 104, 4: 124, 7: 100, 8: 116}),
            ("epid", "U32", {3: 180, 4: 200, 7: 104, 8: 120}),
            ("local", "SOCKADDR", {1: 0, 7: 108, 8: 124}),
            ("remote", "SOCKADDR", {1: 28, 7: 136, 8: 152}),
            ("cc_algo", "CHAR*16", {4: 100, 7: 164, 8: 180}),
            ("pname", "CHAR*64", {1: 104, 2: 108, 4: 128, 7: 180, 8: 196}),
            ("uuid", "UUID", {3: 184, 4: 204, 7: 244, 8: 260}),
            ("euuid", "UUID", {3: 200, 4: 220, 7: 260, 8: 276}),
            ("vuuid", "UUID", {4: 236, 7: 276, 8: 292}),
            ("fuuid", "UUID", {8: 308}),
            ("persona_id", "U32", {11: 324}),
            ("uid", "U32", {11: 328}),
            ("connstatus", "U32", {5: 252, 7: 292, 8: 324, 11: 332}),
            ("ifnet_properties", {5: "U16", 9: "U32"}, {5: 256, 7: 296, 8: 328, 11: 336}),
            ("fallback_mode", "U8", {9: 332, 11: 340}),
        ),
    ),
    "nstat_udp_descriptor": (
        {1: 144, 2: 148, 3: 192, 4: 208, 5: 212, 7: 256, 8: 272, 11: 280},
        (
            ("upid", "U64", {1: 68, 2: 72, 7: 0}),
            ("eupid", "U64", {3: 148, 7: 8}),
            ("start_timestamp", "U64", {7: 16}),
            ("timestamp", "U64", {7: 24}),
            ("activity_bitmap.start", "U64", {7: 32}),
            ("activity_bitmap.bitmap", "U64*2", {7: 40}),
            ("local", "SOCKADDR", {1: 0, 7: 56}),
            ("remote", "SOCKADDR", {1: 28, 7: 84}),
            ("ifindex", "U32", {1: 56, 7: 112}),
            ("rcvbufsize", "U32", {1: 60, 7: 116}),
            ("rcvbufused", "U32", {1: 64, 7: 120}),
            ("traffic_class", "U32", {2: 68, 7: 124}),
            ("pid", "U32", {1: 76, 2: 80, 7: 128}),
            ("pname", "CHAR*64", {1: 80, 2: 84, 7: 132}),
            ("epid", "U32", {3: 156, 7: 196}),
            ("uuid", "UUID", {3: 160, 7: 200}),
            ("euuid", "UUID", {3: 176, 7: 216}),
            ("vuuid", "UUID", {4: 192, 7: 232}),
            ("fuuid", "UUID", {8: 248}),
            ("persona_id", "U32", {11: 264}),
            ("uid", "U32", {11: 268}),
            ("ifnet_properties", {5: "U16", 9: "U32"}, {5: 208, 7: 248, 8: 264, 11: 272}),
            ("fallback_mode", "U8", {9: 268, 11: 276}),
        ),
    ),
    "nstat_connection_descriptor": (
        {10: 192, 11: 200},
        (
            ("start_timestamp", "U64", {10: 0}),
            ("timestamp", "U64", {10: 8}),
            ("upid", "U64", {10: 16}),
            ("eupid", "U64", {10: 24}),
            ("pid", "U32", {10: 32}),
            ("epid", "U32", {10: 36}),
            ("ifnet_properties", "U32", {10: 40}),
            ("pname", "CHAR*64", {10: 44}),
            ("uuid", "UUID", {10: 108}),
            ("euuid", "UUID", {10: 124}),
            ("cuuid", "UUID", {10: 140}),
            ("puuid", "UUID", {10: 156}),
            ("fuuid", "UUID", {10: 172}),
            ("persona_id", "U32", {11: 188}),
            ("uid", "U32", {11: 192}),
        ),
    ),
    "nstat_route_descriptor": (
        {1: 116, 7: 120},
        (
            ("id", "U64", {1: 0}),
            ("parent_id", "U64", {1: 8}),
            ("gateway_id", "U64", {1: 16}),
            ("dst", "SOCKADDR", {1: 24}),
            ("mask", "SOCKADDR", {1: 52}),
            ("gateway", "SOCKADDR", {1: 80}),
            ("ifindex", "U32", {1: 108}),
            ("flags", "U32", {1: 112}),
        ),
    ),
    "nstat_ifnet_descriptor": (
        {3: 164, 5: 248},
        (
            ("threshold", "U64", {3: 24, 7: 0}),
            ("ifindex", "U32", {3: 20, 7: 8}),
            ("link_status.link_status_type", "U32", {5: 164, 7: 12}),
            *_link_rows(),
            ("link_status.u.cellular.mss_recommended", "U16", {6: 232, 7: 80}),
            ("type", "U32", {3: 32, 7: 96}),
            ("description", "CHAR*128", {3: 36, 7: 100}),
            ("name", "CHAR*17", {3: 0, 7: 228}),
        ),
    ),
    "nstat_sysinfo_descriptor": (
        {4: 4},
        (("flags", "U32", {4: 0}),),
    ),
    "nstat_sysinfo_keyval": (
        {4: 16, 7: 40},
        (
            ("nstat_sysinfo_key", "U32", {4: 0}),
            ("nstat_sysinfo_flags", "U32", {4: 4}),
            ("u.nstat_sysinfo_scalar", "I64", {4: 8}),
            ("u.nstat_sysinfo_distribution", "F64", {4: 8}),
            ("u.nstat_sysinfo_string", "CHAR*24", {7: 8}),
            ("nstat_sysinfo_valsize", "U32", {7: 32}),
        ),
    ),
    "nstat_domain_info": (
        {9: 1032, 10: 1056},
        (
            ("domain_name", "CHAR*256", {9: 0}),
            ("domain_owner", "CHAR*256", {9: 256}),
            ("domain_tracker_ctxt", "CHAR*256", {9: 512}),
            ("domain_attributed_bundle_id", "CHAR*256", {9: 768}),
            ("remote", "SOCKADDR", {10: 1024}),
            ("is_tracker", "BOOL", {9: 1024, 10: 1052}),
            ("is_non_app_initiated", "BOOL", {9: 1025, 10: 1053}),
            ("is_silent", "BOOL", {9: 1026, 10: 1054}),
        ),
    ),
    "nstat_interface_counts": (
        {11: 32},
        (
            ("nstat_rxpackets", "U64", {11: 0}),
            ("nstat_rxbytes", "U64", {11: 8}),
            ("nstat_txpackets", "U64", {11: 16}),
            ("nstat_txbytes", "U64", {11: 24}),
        ),
    ),
    "nstat_route_add_param": (
        {1: 60},
        (
            ("dst", "SOCKADDR", {1: 0}),
            ("mask", "SOCKADDR", {1: 28}),
            ("ifindex", "U32", {1: 56}),
        ),
    ),
    "nstat_ifnet_add_param": (
        {3: 12, 7: 16},
        (
            ("threshold", "U64", {3: 4, 7: 0}),
            ("ifindex", "U32", {3: 0, 7: 8}),
        ),
    ),
    "nstat_tcp_add_param": (
        {1: 56},
        (
            ("local", "SOCKADDR", {1: 0}),
            ("remote", "SOCKADDR", {1: 28}),
        ),
    ),
    "nstat_msg_src_details": (
        {12: 488},
        (
            ("srcref", "U64", {12: 16}),
            ("event_flags", "U64", {12: 24}),
            ("detailed_counts", "DETAILED_COUNTS", {12: 32}),
            ("provider", "U32", {12: 480}),
        ),
    ),
    "nstat_detailed_counts": (
        {12: 448},
        (
            *_media_rows(),
            ("rxduplicatebytes", "U64", {12: 392}),
            ("rxoutoforderbytes", "U64", {12: 400}),
            ("txretransmit", "U64", {12: 408}),
            ("min_rtt", "U32", {12: 416}),
            ("avg_rtt", "U32", {12: 420}),
            ("var_rtt", "U32", {12: 424}),
            ("xtra_flags", "U32", {12: 428}),
            ("xtra_uuid", "UUID", {12: 432}),
        ),
    ),
}
"""Structure name to (sizes, rows)."""
