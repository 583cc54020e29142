"""`python -m unbraid`, which launchers of several processes start: `accelerate launch -m unbraid train …`."""

from unbraid.cli import main

main()
