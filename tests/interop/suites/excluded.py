"""The tests of others that are not run, each with its reason. The lists of docs/KAFKA.md are made of these tables."""

from __future__ import annotations

_NO_TRANSACTIONS = "transactions: not there yet"
_NO_SHARE_GROUPS = "share groups: not there"
_NO_SASL = "SASL: not there yet"

KGO: dict[str, str] = {
    "TestTxnEtl": _NO_TRANSACTIONS,
    "TestSCRAMAuth": _NO_SASL,
    "TestSCRAMAuthBadCredentials": _NO_SASL,
    "TestShareGroup": _NO_SHARE_GROUPS,
    "TestShareGroupETL": _NO_SHARE_GROUPS,
    "TestShareGroupAckOnClose": _NO_SHARE_GROUPS,
    "TestShareGroupOffsetsAdmin": _NO_SHARE_GROUPS,
}

_NO_COMPACTION = "compaction: not there yet"
_NO_ACLS = "ACLs: not there yet"
_OWN_MOCK = "runs against librdkafka's own mock cluster"
_OTHER_SETTINGS = (
    "sets compression.type, flush.ms, delete.retention.ms, cleanup.policy, and settings of brokers and groups, all of which "
    "are refused by name: nothing is taken that does nothing"
)

LIBRDKAFKA: dict[str, str] = {
    "0011_produce_batch/test_message_single_partition_record_fail": _NO_COMPACTION,
    "0055_producer_latency/transactions": _NO_TRANSACTIONS,
    "0061_consumer_lag": _NO_TRANSACTIONS,
    "0064_interceptors": "wants a librdkafka that is built with TLS",
    "0077_compaction": _NO_COMPACTION,
    "0081_admin/do_test_AlterConfigs": _OTHER_SETTINGS,
    "0081_admin/do_test_CreateTopics": _OTHER_SETTINGS,
    "0081_admin/do_test_IncrementalAlterConfigs": _OTHER_SETTINGS,
    "0081_admin/do_test_CreateAcls": _NO_ACLS,
    "0081_admin/do_test_DescribeAcls": _NO_ACLS,
    "0081_admin/do_test_DeleteAcls": _NO_ACLS,
    "0081_admin/do_test_UserScramCredentials": _NO_SASL,
    "0097_ssl_verify": "TLS: not there yet",
    "0098_consumer_txn": _NO_TRANSACTIONS,
    "0103_transactions": _NO_TRANSACTIONS,
    "0115_producer_auth": _NO_ACLS,
    "0119_consumer_auth": _NO_ACLS,
    "0126_oauthbearer_oidc": _NO_SASL,
    "0129_fetch_aborted_msgs": _NO_TRANSACTIONS,
    "0135_sasl_credentials": _NO_SASL,
    "0137_barrier_batch_consume/do_test_consume_batch_control_msgs": _NO_TRANSACTIONS,
    "0139_offset_validation_mock": _OWN_MOCK,
    "0142_reauthentication": _NO_SASL,
    "0150_telemetry_mock": _OWN_MOCK,
    "0170_share_consumer_subscription": _NO_SHARE_GROUPS,
    "0171_share_consumer_consume": _NO_SHARE_GROUPS,
    "0172_share_consumer_acknowledge": _NO_SHARE_GROUPS,
    "0173_share_consumer_commit_async": _NO_SHARE_GROUPS,
    "0174_share_consumer_concurrency": _NO_SHARE_GROUPS,
    "0175_share_consumer_groups": _NO_SHARE_GROUPS,
    "0176_share_consumer_commit_sync": _NO_SHARE_GROUPS,
    "0177_share_consumer_transactions": _NO_SHARE_GROUPS,
    "0178_share_consumer_close": _NO_SHARE_GROUPS,
    "0179_share_consumer_destroy": _NO_SHARE_GROUPS,
    "0180_share_consumer_config": _NO_SHARE_GROUPS,
    "0181_share_consumer_topic_delete": _NO_SHARE_GROUPS,
    "0184_share_consumer_topic_recreate": _NO_SHARE_GROUPS,
    "0185_share_consumer_max_poll_interval": _NO_SHARE_GROUPS,
}


LIBRDKAFKA_IDEMPOTENT: dict[str, str] = {
    "0107_topic_recreate": (
        "a topic is deleted and made again under an idempotent producer, whose sequence goes on: in a log that never held "
        "a record 0 comes first, and librdkafka ends with a fatal error. Kafka takes any sequence of a producer that is new "
        "to a partition"
    ),
}

BEGIN = "<!-- excluded tests: tests/interop/suites/excluded.py -->"
END = "<!-- end of the excluded tests -->"


def excluded_lines() -> str:
    """The list in docs/KAFKA.md, between the two marks: each reason with its tests."""
    lines = []
    tables = (("kgo", KGO), ("librdkafka", LIBRDKAFKA), ("librdkafka with `--idempotent`", LIBRDKAFKA_IDEMPOTENT))
    for suite, table in tables:
        reasons: dict[str, list[str]] = {}
        for test, reason in table.items():
            reasons.setdefault(reason, []).append(f"`{test}`")
        lines += [f"- {suite}, {reason}: {', '.join(tests)}" for reason, tests in reasons.items()]
    return "\n".join(lines)
