"""Keeps orders open at the mock exchange of the end-to-end tests, and takes them back when the bot stops.

Only one copy of a bot may trade. The exchange knows a bot by the instance_id of its conf_client.yml and a copy by its
host name and start; a copy without the bot's lock asks for it at every tick and places nothing.
"""

import asyncio
import os
import socket
import time
from typing import Dict, Optional

import aiohttp
from pydantic import Field

from hummingbot.client.hummingbot_application import HummingbotApplication
from hummingbot.strategy.strategy_v2_base import StrategyV2Base, StrategyV2ConfigBase

MIB = 1 << 20


class TorporOrdersConfig(StrategyV2ConfigBase):
    script_file_name: str = os.path.basename(__file__)
    exchange: str = Field(description="Address of the exchange, e.g. http://exchange.example:8000")
    orders: int = Field(default=4, ge=1, description="Orders to keep open")
    refresh_seconds: float = Field(default=6, gt=0, description="Age at which an order is replaced")
    start_seconds: int = Field(default=0, ge=0, description="Seconds that the strategy takes to start")
    allocate_mib_per_tick: int = Field(default=0, ge=0, description="Memory to take at every tick and never give back")


class Refused(Exception):
    """The exchange understood and said no."""


class TorporOrders(StrategyV2Base):
    @classmethod
    def init_markets(cls, config: TorporOrdersConfig):
        cls.markets = {}

    def __init__(self, connectors, config: TorporOrdersConfig):
        super().__init__(connectors, config)
        # As a strategy that loads what it needs: nothing else is done meanwhile.
        time.sleep(config.start_seconds)
        self.bot = HummingbotApplication.main_application().client_config_map.instance_id
        self.instance = f"{self.bot}@{socket.gethostname()}-{time.time_ns()}"
        self.held = False
        self.stopping = False
        self.placed: Dict[int, float] = {}
        self.sell_next = False
        self.round: Optional[asyncio.Task] = None
        self.session: Optional[aiohttp.ClientSession] = None
        self.hoard = []

    def on_tick(self):
        # The clock goes on ticking while on_stop runs.
        if self.stopping:
            return
        if self.config.allocate_mib_per_tick:
            # Bytes that are not zero: the kernel counts a page when it is written.
            self.hoard.append(b"x" * (self.config.allocate_mib_per_tick * MIB))
        if self.round is None or self.round.done():
            self.round = asyncio.create_task(self.tend())

    async def tend(self):
        """One look at the orders. A failure is logged, and the next tick tries again."""
        try:
            await self.keep_lock()
            if self.held:
                await self.keep_orders()
        except (aiohttp.ClientError, asyncio.TimeoutError, Refused) as error:
            self.logger().error(f"Round at {self.config.exchange} failed: {type(error).__name__}: {error}")

    async def keep_lock(self):
        try:
            await self.ask("heartbeat" if self.held else "lock")
        except Refused as error:
            self.held = False
            self.logger().error(f"No lock for {self.instance}: {error}")
            return
        if not self.held:
            self.held = True
            self.logger().info(f"{self.instance} has the lock.")

    async def keep_orders(self):
        now = time.monotonic()
        open_orders = await self.ask("orders")
        self.placed = {order: at for order, at in self.placed.items() if order in open_orders}
        # Orders that this copy did not place were left by one that was killed.
        old = [order for order in open_orders if now - self.placed.get(order, 0) > self.config.refresh_seconds]
        for order in old:
            await self.ask("cancel", order=order)
        for _ in range(self.config.orders - len(open_orders) + len(old)):
            if self.stopping:
                return
            side, price = ("sell", "101") if self.sell_next else ("buy", "99")
            self.sell_next = not self.sell_next
            order = await self.ask("place", side=side, price=price, amount="0.1")
            self.placed[order] = now

    async def on_stop(self):
        self.stopping = True
        if self.round is not None:
            # What it still places is cancelled below.
            await self.round
        while True:
            try:
                await self.wind_down()
                break
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                self.logger().error(f"Stopping, {self.config.exchange} failed: {type(error).__name__}: {error}")
                await asyncio.sleep(1)
            except Refused as error:
                self.logger().error(f"Cannot cancel the orders of {self.instance}: {error}")
                break
        if self.session is not None:
            await self.session.close()
        await super().on_stop()

    async def wind_down(self):
        await self.ask("stopping")
        if not self.held:
            return
        while open_orders := await self.ask("orders"):
            for order in open_orders:
                await self.ask("cancel", order=order)
        await self.ask("unlock")
        self.held = False
        self.logger().info(f"{self.instance} cancelled its orders and gave the lock back.")

    async def ask(self, do: str, **details):
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        request = {"bot": self.bot, "instance": self.instance, "do": do, **details}
        async with self.session.post(self.config.exchange, json=request) as response:
            if response.status not in (200, 409):
                response.raise_for_status()
            answer = await response.json()
        if isinstance(answer, str):
            return answer
        (kind, value), = answer.items()
        if kind == "refused":
            raise Refused(value)
        return value
