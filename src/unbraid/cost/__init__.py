"""What a run will take: memory and time, told from a recipe before anything is downloaded or started."""
