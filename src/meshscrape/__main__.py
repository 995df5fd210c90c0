"""`python -m meshscrape` is the same as the `meshscrape` command."""

from meshscrape.cli.main import main

if __name__ == "__main__":
    main()
