"""What every version of every SDK has to fulfil. Run by `tests.support.environments` in environments of their own; what
is installed there decides which cases there are."""
