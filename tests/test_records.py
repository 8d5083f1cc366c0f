"""The accounts of a request: listed once, added up once."""

from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.ledger.open_requests import COLUMNS
from llm_carbon_meter.records import ACCOUNT_NAMES, REQUEST_ACCOUNTS, AccountJoules

an_account = st.floats(0, 1e9)
accounts = st.builds(AccountJoules, *[an_account] * len(ACCOUNT_NAMES))


def test_the_accounts_of_a_request_are_the_ledger_s_columns_in_their_order() -> None:
    """The ledger makes the one of the other by position."""
    labels = [account.label for account in REQUEST_ACCOUNTS]
    assert list(ACCOUNT_NAMES) == [*labels, "idle"]
    assert len(ACCOUNT_NAMES) == COLUMNS


@given(accounts)
def test_the_total_holds_every_account(joules: AccountJoules) -> None:
    """And without idle it is what an estimate is of."""
    assert joules.total == sum(joules.by_name.values())
    assert joules.busy == joules.total - joules.idle


@given(accounts, accounts)
def test_adding_adds_account_by_account(first: AccountJoules, second: AccountJoules) -> None:
    """None is left out, none is mixed up with another."""
    both = (first + second).by_name
    assert both == {name: first.by_name[name] + second.by_name[name] for name in ACCOUNT_NAMES}
