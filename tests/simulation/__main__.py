"""`python -m tests.simulation`: run seeds, replay one, soak. `scripts/simulate` calls it."""

from tests.simulation.command import main

if __name__ == "__main__":
    main()
