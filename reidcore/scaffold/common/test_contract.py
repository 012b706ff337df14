"""What reidcore expects of every part of this kind, each in a test of its own."""

from reidcore.testing import contract

test_contract = contract("example")
