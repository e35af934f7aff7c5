"""What tests share: real back ends, free ports, leak checks. Fixtures that hand these out are in tests/conftest.py."""
