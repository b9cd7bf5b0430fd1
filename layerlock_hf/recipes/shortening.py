"""Recipes for runs of fewer steps."""

# Settings that are measured in steps, and how many they are at least
SCHEDULE = {
    "freeze_start": 1,
    "freeze_interval": 1,
    "warmup_steps": 0,
    "switch_warmup_steps": 0,
    "steps_per_block": 1,
    "latent_weight_ramp_steps": 0,
}


def shortened(recipe: dict, max_steps: int) -> dict:
    """The settings that bring a recipe to `max_steps`, its schedules in proportion."""
    share = max_steps / recipe["max_steps"]
    # What is below 1 is a share of the run already
    scaled = {
        name: max(least, int(recipe[name] * share)) for name, least in SCHEDULE.items() if recipe.get(name, 0) >= 1
    }
    return {"max_steps": max_steps} | scaled
