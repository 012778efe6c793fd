variable "atoll_bin" {
  description = "The atoll program. Empty: the one on PATH, else the repository's release build."
  type        = string
  default     = ""
}

variable "data" {
  description = "The mesh's folder. Empty: .atoll/terraform in the repository."
  type        = string
  default     = ""
}

variable "port_base" {
  description = "First HTTP port; the fabric's UDP ports begin 1000 above it."
  type        = number
  default     = 7280

  validation {
    condition     = var.port_base >= 1024 && var.port_base <= 60000
    error_message = "port_base must be between 1024 and 60000."
  }
}

variable "regions" {
  description = "Codes of the regions, the first one first. Each needs a descriptor in regions_folder."
  type        = list(string)
  default     = ["fra", "iad", "sin"]

  validation {
    condition     = length(var.regions) > 0 && length(distinct(var.regions)) == length(var.regions)
    error_message = "regions must name at least one region, and none twice."
  }
}

variable "nodes_per_region" {
  description = "Nodes in each region."
  type        = number
  default     = 1

  validation {
    condition     = var.nodes_per_region >= 1 && floor(var.nodes_per_region) == var.nodes_per_region
    error_message = "nodes_per_region must be a whole number from 1."
  }
}

variable "pool" {
  description = "Warm clones on each node."
  type        = number
  default     = 4
}

variable "hypervisor" {
  description = "auto, cloud_hypervisor or qemu."
  type        = string
  default     = "auto"

  validation {
    condition     = contains(["auto", "cloud_hypervisor", "qemu"], var.hypervisor)
    error_message = "hypervisor must be auto, cloud_hypervisor or qemu."
  }
}

variable "regions_folder" {
  description = "The folder with the regions' descriptors. Empty: regions in the repository."
  type        = string
  default     = ""
}

variable "work_folder" {
  description = "The folder whose .atoll/image holds the guest image. Empty: the repository."
  type        = string
  default     = ""
}
