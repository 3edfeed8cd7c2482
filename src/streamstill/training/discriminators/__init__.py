"""Who tells teacher from student, what it may look at, and what it minimises."""
