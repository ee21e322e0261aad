"""From a site's files (DICOM, image folders, tables) to a cohort of tensors, split by patient."""
