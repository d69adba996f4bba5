"""The simulated world as typed values: banks, categories, monthly payments and the tasks' formulas, from YAML."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from pydantic import Field, model_validator

from ledgerlm.config import Conf, find_file, load_yaml, parse

Bank = Literal["A", "B"]
Trait = Literal[
    "age", "kids", "wealth", "risk", "stress", "price", "decline", "leave", "plan", "regular", "digital", "save",
    "interest", "tenure", "package",
]  # fmt: skip
TRAITS: tuple[str, ...] = get_args(Trait)
Loadings = dict[Trait, float]


class BankWorld(Conf):
    """Where a bank's clients live."""

    country: str = Field(description="ISO code of the country, also the holiday calendar")
    currency: str = Field(description="ISO code of the home currency")
    price_level: float = Field(description="prices and incomes, relative to bank A")
    cities: dict[str, tuple[str, ...]] = Field(description="region to its cities")


class Destination(Conf):
    """A place where clients spend their holidays."""

    city: str = Field(description="city as printed by terminals")
    country: str = Field(description="ISO code of the country")
    currency: str = Field(description="ISO code of the currency")
    rate: float = Field(description="local units for one unit of the home currency")


class EventType(Conf):
    """An event type: one description, a code of each bank."""

    A: str = Field(description="code at bank A")
    B: str = Field(description="code at bank B")
    description: str = Field(description="what both codes mean")


class Coded(Conf):
    """Something that both banks name by their own code."""

    codes: dict[Bank, str] = Field(description="bank to its code")
    description: str = Field(description="what the codes mean")


class Category(Coded):
    """A purchase category."""

    key: str = Field(description="name inside the world")
    weight: dict[Bank, float] = Field(description="log popularity at each bank")
    median: float = Field(description="median amount in home currency units")
    hour: float = Field(description="usual hour of the day")
    online: float = Field(description="logit of buying online")
    loadings: Loadings = Field(description="trait to its weight in the log popularity")
    months: tuple[int, ...] = Field(description="months (1 to 12) in which the season favours it")
    weekend: bool = Field(description="favoured at weekends")
    merchants: dict[Bank, tuple[str, ...]] = Field(description="bank to six names, from discount to premium")


class Purchases(Conf):
    """How shopping trips go on, and what besides taste chooses a first purchase."""

    continue_: float = Field(alias="continue", description="probability of one more shop on the trip")
    longest_trip: int = Field(description="most purchases in one trip")
    steps: tuple[int, ...] = Field(description="places along the ring to the next shop, each as likely as the others")
    season: float = Field(description="share drawn from the month's categories")
    weekend: float = Field(description="share of weekend purchases drawn from the weekend's categories")
    intent: float = Field(description="share of recent purchases that prepare a goal")
    intent_days: int = Field(description="days before as_of that count as recent")

    @property
    def mean_trip(self) -> float:
        """Mean purchases in a trip."""
        return sum(self.continue_**place for place in range(self.longest_trip))


class Logit(Conf):
    """A linear function of the traits on the logit scale."""

    bias: float = Field(description="value at mean traits")
    loadings: Loadings = Field(default_factory=dict, description="trait to weight")
    trend: Loadings = Field(default_factory=dict, description="trait to weight, growing over the last third")


class Amount(Conf):
    """What a monthly payment moves: positive in, negative out."""

    fixed: float = Field(description="home currency units")
    share: float = Field(0.0, description="times the monthly income")
    spread: float = Field(0.0, description="log deviation between clients")
    noise: float = Field(0.0, description="log deviation between a client's events")


class Item(Conf):
    """A payment or contact that comes by the month."""

    key: str = Field(description="name inside the world")
    type: str = Field(description="key of its event type")
    category: Coded | None = Field(None, description="its merchant category, where it has one")
    day: int = Field(description="day of the month, 1 to 28; 0: any")
    hour: float = Field(description="usual hour of the day")
    channel: str = Field(description="channel")
    holding: Logit | None = Field(None, description="who has it; left out: everyone")
    monthly: Logit = Field(description="in which months it happens")
    amount: Amount | None = Field(None, description="what it moves; left out: no money")
    payees: tuple[str, ...] = Field(("",), description="names in the merchant field; a client keeps one")
    notes: tuple[str, ...] = Field(description="texts; {n} becomes a number, {month} the month's name")


class Binary(Conf):
    """P = sigmoid(bias + slope Z), Z the standardised sum of the loadings."""

    bias: float = Field(description="logit at Z = 0")
    slope: float = Field(description="logits for one deviation of Z")
    loadings: Loadings = Field(description="trait to weight")


class Part(Conf):
    """One source of a campaign's signal."""

    share: float = Field(description="share of the signal's variance")
    loadings: Loadings = Field(description="trait to weight")


class Campaign(Conf):
    """Who answers a campaign, with and without being contacted."""

    bias: float = Field(description="logit of an untreated mean client")
    slope: float = Field(description="logits for one deviation of the whole signal")
    treated: float = Field(description="share of clients that are contacted")
    effect: float = Field(description="logits that the contact adds")
    effect_plan: float = Field(description="logits that it adds more for one deviation of the trait plan")
    parts: dict[Literal["structured", "history", "text"], Part] = Field(description="sources of the signal")


class Stage(Conf):
    """One class of an age or life-stage task."""

    centre: float = Field(description="age in years at which the class is most likely")
    kids: float = Field(0.0, description="weight of the trait kids")


class Stages(Conf):
    """Softmax of -((age - centre) / width)^2 / 2 + kids x kids."""

    width: float = Field(description="years")
    classes: dict[str, Stage] = Field(description="name to class, in the order of the labels")


class Goal(Conf):
    """One goal that a client may have next."""

    loadings: Loadings = Field(description="trait to weight")
    categories: tuple[str, ...] = Field(description="categories that prepare it, each as likely as the others")


class Goals(Conf):
    """Softmax of slope x (0.8 x own hidden wish + loadings)."""

    slope: float = Field(description="scale of the scores")
    classes: dict[str, Goal] = Field(description="name to goal, in the order of the labels")


class Tasks(Conf):
    """The formulas of the labels."""

    churn: Binary
    default: Binary
    campaign: Campaign
    age_group: Stages
    life_stage: Stages
    next_goal: Goals


class World(Conf):
    """Everything that the generator knows, but seeds and sizes."""

    banks: dict[Bank, BankWorld] = Field(description="bank to its country")
    destinations: tuple[Destination, ...] = Field(description="holiday places")
    types: dict[str, EventType] = Field(description="key to event type")
    purchases: Purchases = Field(description="how purchases are chosen")
    categories: tuple[Category, ...] = Field(description="purchase categories, in ring order")
    items: tuple[Item, ...] = Field(description="monthly payments and contacts")
    tasks: Tasks = Field(description="formulas of the labels")

    @model_validator(mode="after")
    def _names_exist(self) -> World:
        keys = set(self.category_keys)
        for goal in self.tasks.next_goal.classes.values():
            if unknown := set(goal.categories) - keys:
                raise ValueError(f"unknown categories {sorted(unknown)} in a goal; known: {sorted(keys)}")
        if unknown := {item.type for item in self.items} - set(self.types):
            raise ValueError(f"unknown event types {sorted(unknown)} in items; known: {sorted(self.types)}")
        return self

    @property
    def category_keys(self) -> tuple[str, ...]:
        """Keys of the purchase categories in ring order."""
        return tuple(category.key for category in self.categories)


@cache
def load_world(file: str = "simulator/world.yaml") -> World:
    """Reads and checks a world.

    Raises:
        ConfigError: naming the file, the key and the nearest valid key.
    """
    path = find_file(file)
    return parse(World, load_yaml(path), source=str(path))
