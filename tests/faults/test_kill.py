"""kill -9 at random: what the shop acknowledged is delivered."""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from tests.support import free_port

from .harness import (
    Buyers,
    Program,
    accepted_orders,
    database,
    environment,
    happens,
    integrity,
    kill,
    query,
    running,
    states,
)

ORDERS = 2000


@dataclass
class Killer:
    """Kills a worker of the shop or the relay every now and then; whoever dies is started again, as systemd would."""

    shop: Program
    env: dict[str, str]
    log: Path
    chance: random.Random
    killed: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def at_large(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._kill_until, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _kill_until(self, over: threading.Event) -> None:
        while not over.is_set():
            with running([sys.executable, "-m", "katalys_wsgi", "deliver"], self.env, self.log) as relay:
                while not over.wait(self.chance.uniform(0.1, 0.6)):
                    workers = self.shop.children()
                    if not workers or self.chance.random() < 0.35:
                        kill(relay.pid)
                        self.killed["relay"] += 1
                        break
                    kill(self.chance.choice(workers))
                    self.killed["worker"] += 1


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("seed", "worker"),
    [
        pytest.param(1, ["--worker-class", "sync"], id="seed 1, sync"),
        pytest.param(2, ["--worker-class", "gthread", "--threads", "4"], id="seed 2, gthread"),
        pytest.param(3, ["--worker-class", "gthread", "--threads", "4", "--preload"], id="seed 3, gthread preloaded"),
    ],
)
def test_what_was_acknowledged_arrives_whatever_is_killed(
    seed: int,
    worker: list[str],
    missing: Callable[[str], Any],
    options: dict[str, Any],
    sandbox: Sandbox,
    tmp_path: Path,
) -> None:
    """Workers with a relay thread each, and a relay process, killed at random; Katalys answers 503 now and then."""
    if importlib.util.find_spec("gunicorn") is None:
        missing("gunicorn is not installed; install the extra test")
    settings: dict[str, Any] = {**options, "delivery": "thread", "deadline": 1}
    path = database(options)
    sandbox.collector.misbehave(Misbehaviour.status(503, headers={"Retry-After": "1"}), share=0.3, seed=seed)
    buyers = Buyers(free_port())
    shop_command = [
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{buyers.port}", "--workers", "3", *worker,
        "tests.faults.shop:application",
    ]  # fmt: skip
    env = environment(settings, SHOP_WARMS_UP="1")
    started = time.monotonic()
    with ExitStack() as stack:
        shop = stack.enter_context(running(shop_command, env, tmp_path / "shop.log"))
        killer = Killer(shop, env, tmp_path / "relay.log", random.Random(seed))  # noqa: S311 - a seed to repeat
        buyers.arrive()
        with killer.at_large():
            buyers.buy_all(f"K{number}" for number in range(ORDERS))
    left_behind = states(path)["pending"]
    # The machine is up again: what the dead had claimed is due when their leases end.
    with running([sys.executable, "-m", "katalys_wsgi", "deliver"], env, tmp_path / "relay.log"):
        arrived = happens(lambda: buyers.acknowledged <= set(accepted_orders(sandbox)))
        settled = happens(lambda: states(path).keys() == {"delivered"})

    accepted = accepted_orders(sandbox)
    print(
        f"\nseed {seed}: {dict(killer.killed)} killed; {len(buyers.answers)} of {ORDERS} orders answered,"
        f" {dict(Counter(buyers.answers.values()))}; {left_behind} rows left behind;"
        f" {len(sandbox.collector.received)} sent, {len(accepted)} accepted,"
        f" {len(accepted) - len(set(accepted))} of them extra; {time.monotonic() - started:.0f} s"
    )
    lost = buyers.acknowledged - set(accepted)
    sent_directly = {order_id for order_id, answer in buyers.answers.items() if answer == "SENT_DIRECTLY"}
    assert arrived, f"{len(lost)} lost: {sorted(lost)[:10]}"
    assert sent_directly <= set(accepted)
    assert settled, states(path)
    assert integrity(path) == "ok"
    assert min(killer.killed["relay"], killer.killed["worker"]) >= 3
    assert len(buyers.acknowledged) > 0.9 * ORDERS
    assert query(path, "SELECT count(*) FROM katalys_outbox WHERE payload LIKE '%email_address%'") == [(0,)]
