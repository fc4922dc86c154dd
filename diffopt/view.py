"""What a stage's author reads of a recipe: a group's schema, the view of it that a stage declares, and all choices."""

from diffopt.groups.choices import Choices
from diffopt.groups.view import View
from diffopt.schema import Group

__all__ = ["Choices", "Group", "View"]
