"""What carries out the decisions of `coordination/`: one shell for each partition of an internal topic that is led here."""
